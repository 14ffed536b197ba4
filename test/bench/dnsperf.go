package main

// This file runs dnsperf and reads what it says.

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

// perf is one run of dnsperf, with 100 queries under way at any time unless the rate is limited.
type perf struct {
	server    netip.AddrPort
	questions string        // file
	rcode     string        // that every answer has to have
	duration  time.Duration // of asking all again and again; 0: ask every question once
	rate      int           // queries per second at most; each is timed then
}

// perfResult is what a run found.
type perfResult struct {
	answers float64
	rate    float64         // answers per second
	times   []time.Duration // of the answers, sorted; with perf.rate only
}

// runDnsperf asks the server from the host. Anything but the expected answer to every query is an error.
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
	sent, completed, right := parseNumber(out, "Queries sent"), parseNumber(out, "Queries completed"), parseNumber(out,
		"Response codes", p.rcode)
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

// parseNumber reads a line of the statistics. With a word, it is the number that follows the word. What is not there
// is 0.
func parseNumber(out, title string, word ...string) float64 {
	pattern := `(?m)^\s*` + title + `:\s+`
	if len(word) > 0 {
		pattern += `(?:.*\s)?` + word[0] + ` `
	}
	m := regexp.MustCompile(pattern + `([0-9.]+)`).FindStringSubmatch(out)
	if m == nil {
		return 0
	}
	n, _ := strconv.ParseFloat(m[1], 64) // it is one, as the expression says
	return n
}

// lastStatistics is the end of what dnsperf wrote, from its statistics on.
func lastStatistics(out string) string {
	if i := strings.Index(out, "Statistics:"); i >= 0 {
		out = out[i:]
	}
	return strings.TrimSpace(out)
}
