package main

// This file runs dnsperf and reads its output.

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mandelsoft/kubelink/test/testbed"
)

// perf is one run of dnsperf. It keeps 100 queries under way at any time, unless the rate is limited.
type perf struct {
	server    netip.AddrPort
	questions string        // file
	rcode     string        // required in every answer
	duration  time.Duration // duration of repeating all queries; 0: each query once
	rate      int           // queries per second at most; dnsperf then times each query
}

// perfResult is the result of a run.
type perfResult struct {
	answers float64
	rate    float64         // answers per second
	times   []time.Duration // latencies, sorted; with perf.rate only
}

// runDnsperf queries the server from the host. Any answer but the expected one is an error.
func (p perf) runDnsperf(ctx context.Context, from *testbed.Host) (r perfResult, err error) {
	args := []string{"-s", p.server.Addr().String(), "-p", strconv.Itoa(int(p.server.Port())), "-d", p.questions,
		"-t", "2"}
	if p.duration == 0 {
		args = append(args, "-n", "1")
	} else {
		args = append(args, "-l", strconv.FormatFloat(p.duration.Seconds(), 'f', -1, 64))
	}
	if p.rate > 0 {
		args = append(args, "-Q", strconv.Itoa(p.rate), "-v")
	}
	out, err := from.Run(ctx, "dnsperf", args...)
	if err != nil {
		return r, err
	}
	return p.parseOutput(out)
}

// parseOutput reads dnsperf's output.
func (p perf) parseOutput(out string) (r perfResult, err error) {
	sent, completed := parseNumber(out, "Queries sent"), parseNumber(out, "Queries completed")
	right := parseNumber(out, "Response codes", p.rcode)
	r.answers, r.rate = completed, parseNumber(out, "Queries per second")
	if sent == 0 || r.rate == 0 || completed != sent || right != sent {
		return r, fmt.Errorf("dnsperf: %.0f queries, %.0f answered, %.0f of these with %s\n%s", sent, completed, right,
			p.rcode, lastStatistics(out))
	}
	if p.rate == 0 {
		return r, nil
	}
	// > NOERROR web.default.svc.cluster.local A 0.000123
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		if len(fields) != 5 || fields[0] != ">" {
			continue
		}
		seconds, err := strconv.ParseFloat(fields[4], 64)
		if err != nil {
			return r, fmt.Errorf("dnsperf: unexpected line %q", line)
		}
		r.times = append(r.times, time.Duration(seconds*float64(time.Second)))
	}
	if float64(len(r.times)) != completed {
		return r, fmt.Errorf("dnsperf: %.0f answers, %d of them timed", completed, len(r.times))
	}
	slices.Sort(r.times)
	return r, nil
}

// parseNumber reads a line of the statistics. With a word, it returns the number after the word. A missing number is
// 0.
func parseNumber(out, title string, word ...string) float64 {
	pattern := `(?m)^\s*` + title + `:\s+`
	if len(word) > 0 {
		pattern += `(?:.*\s)?` + word[0] + ` `
	}
	m := regexp.MustCompile(pattern + `([0-9.]+)`).FindStringSubmatch(out)
	if m == nil {
		return 0
	}
	n, _ := strconv.ParseFloat(m[1], 64) // the expression has found a number
	return n
}

// lastStatistics returns the statistics at the end of dnsperf's output.
func lastStatistics(out string) string {
	if i := strings.Index(out, "Statistics:"); i >= 0 {
		out = out[i:]
	}
	return strings.TrimSpace(out)
}
