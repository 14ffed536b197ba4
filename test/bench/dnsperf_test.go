package main

import (
	"strings"
	"testing"
	"time"
)

const dnsperfOutput = `DNS Performance Testing Tool
Version 2.10.0

[Status] Command line: dnsperf -s 127.0.0.1 -p 5301 -d q.txt -n 1 -v
[Status] Sending queries (to 127.0.0.1:5301)
[Status] Stopping after 1 run through file
> NOERROR s-0000.bench.svc.remote.kubelink A 0.000798
> NOERROR s-0002.bench.svc.remote.kubelink A 0.000045
> NOERROR s-0001.bench.svc.remote.kubelink A 0.000113
[Status] Testing complete (end of file)

Statistics:

  Queries sent:         3
  Queries completed:    3 (100.00%)
  Queries lost:         0 (0.00%)

  Response codes:       NOERROR 3 (100.00%)
  Average packet size:  request 50, response 66
  Run time (s):         0.005744
  Queries per second:   522.284123

  Average Latency (s):  0.000318 (min 0.000045, max 0.000798)
`

func TestDnsperfOutput(t *testing.T) {
	p := perf{rcode: "NOERROR", rate: 1000}
	r, err := p.parseOutput(dnsperfOutput)
	if err != nil {
		t.Fatal(err)
	}
	if r.rate != 522.284123 || len(r.times) != 3 || quantile(r.times, 0.5) != 113*time.Microsecond ||
		quantile(r.times, 0.99) != 798*time.Microsecond {
		t.Errorf("%+v", r)
	}
	for name, output := range map[string]string{
		"lost": strings.NewReplacer("completed:    3 (100.00%)", "completed:    2 (66.67%)",
			"NOERROR 3", "NOERROR 2").Replace(dnsperfOutput),
		"another rcode": strings.Replace(dnsperfOutput, "NOERROR 3 (100.00%)", "NOERROR 2 (66.67%), SERVFAIL 1 (33.33%)", 1),
		"only others":   strings.Replace(dnsperfOutput, "NOERROR 3", "NXDOMAIN 3", 1),
		"not timed": strings.Replace(dnsperfOutput, "> NOERROR s-0001.bench.svc.remote.kubelink A 0.000113",
			"> T s-0001.bench.svc.remote.kubelink A", 1),
		"nothing": "",
	} {
		if _, err := p.parseOutput(output); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
