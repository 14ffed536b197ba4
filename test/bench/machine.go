package main

// This file reads /proc: the CPU time and memory of processes, the load of the machine, and its description.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const tick = time.Second / 100 // USER_HZ on all common Linux ports

// processTime returns the CPU time of the processes, user and system.
func processTime(pids []int) (total time.Duration, err error) {
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, err
		}
		// The name, in parentheses, may contain anything.
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		for _, i := range []int{11, 12} { // utime and stime, 14 and 15 in proc(5)
			n, err := strconv.ParseInt(fields[i], 10, 64)
			if err != nil {
				return 0, err
			}
			total += time.Duration(n) * tick
		}
	}
	return total, nil
}

// machineTime returns the time that all CPUs were busy: user, nice, system, irq and softirq.
func machineTime() (time.Duration, error) { return sumTimes(1, 2, 3, 6, 7) }

// stolenTime returns the time that the host of a virtual machine gave to others while a CPU had work.
func stolenTime() (time.Duration, error) { return sumTimes(8) }

// sumTimes adds up fields of all CPUs' line in /proc/stat; proc(5) numbers them.
func sumTimes(numbers ...int) (total time.Duration, err error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(stat), "\n")
	fields := strings.Fields(line)
	for _, i := range numbers {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, err
		}
		total += time.Duration(n) * tick
	}
	return total, nil
}

// quiet finds out whether other load uses the machine. /proc of the test bed does not show its processes. Between
// measures the machine should be idle, except for the clusters' housekeeping.
type quiet struct {
	patience time.Duration // how long to wait for an idle machine, in total
}

const (
	quietWindow = 100 * time.Millisecond
	quietShare  = 0.25 // of all CPUs that may be busy
	stealShare  = 0.05 // of one CPU that may be stolen during a measure
)

// waitUntilQuiet waits until no other load uses the machine, and returns false when no patience is left.
func (q *quiet) waitUntilQuiet(ctx context.Context) (bool, error) {
	for {
		ok, err := q.isQuiet(ctx)
		if ok || err != nil || q.patience <= 0 {
			return ok, err
		}
		q.patience -= quietWindow
	}
}

// runQuietly calls f while no other load uses the machine, as far as the bench can see: it waits for an idle machine,
// and calls f again if the machine is not idle after the call, or if its host stole time meanwhile. disturbed is true
// if other load disturbed the last call.
func (q *quiet) runQuietly(ctx context.Context, what string, f func() error) (disturbed bool, err error) {
	for {
		quiet, err := q.waitUntilQuiet(ctx)
		if err != nil {
			return false, err
		}
		start := time.Now()
		before, err := stolenTime()
		if err != nil {
			return false, err
		}
		if err := f(); err != nil {
			return false, err
		}
		after, err := stolenTime()
		if err != nil {
			return false, err
		}
		if (after - before).Seconds() > stealShare*time.Since(start).Seconds() {
			quiet = false
		}
		if quiet {
			if quiet, err = q.isQuiet(ctx); err != nil {
				return false, err
			}
		}
		if quiet || q.patience <= 0 {
			return !quiet, nil
		}
		q.patience -= time.Since(start)
		fmt.Printf("  %s is measured again: other programs use the machine, or its host\n", what)
	}
}

// isQuiet measures the load once.
func (q *quiet) isQuiet(ctx context.Context) (bool, error) {
	before, err := machineTime()
	if err != nil {
		return false, err
	}
	start := time.Now()
	select {
	case <-ctx.Done():
		return false, ctx.Err()
	case <-time.After(quietWindow):
	}
	after, err := machineTime()
	return (after - before).Seconds() <= quietShare*float64(runtime.NumCPU())*time.Since(start).Seconds(), err
}

// readMemory returns the processes' resident memory, now and at its highest since resetPeak, in bytes.
func readMemory(pids []int) (resident, peak int64, err error) {
	for _, pid := range pids {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return 0, 0, err
		}
		for line := range strings.Lines(string(status)) {
			fields := strings.Fields(line)
			if len(fields) < 2 || fields[0] != "VmRSS:" && fields[0] != "VmHWM:" {
				continue
			}
			n, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				return 0, 0, err
			}
			if fields[0] == "VmRSS:" {
				resident += n << 10
			} else {
				peak += n << 10
			}
		}
	}
	return resident, peak, nil
}

func resetPeak(pids []int) (err error) {
	for _, pid := range pids {
		err = errors.Join(err, os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0))
	}
	return err
}

// describeMachine returns one line about the machine of the measures.
func describeMachine() string {
	model := "unknown CPU"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	kernel := "unknown"
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		kernel = unix.ByteSliceToString(u.Release[:])
	}
	return fmt.Sprintf("%d cores of %s, Linux %s, %s", runtime.NumCPU(), model, kernel, runtime.Version())
}
