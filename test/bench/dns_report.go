package main

// This file defines tables, plots and promises of the DNS comparison.

import (
	"fmt"
	"slices"
	"strings"
)

func resultQueries(kind string) result { return result{"queries, " + kind + " names", "1000/s"} }
func resultCPU(kind string) result {
	return result{"CPU of the server per query, " + kind + " names", "µs"}
}
func resultMedianLatency(kind string) result {
	return result{fmt.Sprintf("latency at %d/s, %s names, median", moderateRate, kind), "ms"}
}
func result99Latency(kind string) result {
	return result{fmt.Sprintf("latency at %d/s, %s names, p99", moderateRate, kind), "ms"}
}

var (
	resultStart          = result{"start until the zones of all links answer", "s"}
	resultResident       = result{"memory then, resident", "MB"}
	resultResidentPeak   = result{"memory, resident, peak", "MB"}
	resultWithdrawn      = result{"lost link until SERVFAIL for its names", "ms"}
	resultWaited         = result{"longest wait for an answer meanwhile", "ms"}
	resultReturned       = result{"dial of a returned cluster until its names", "ms"}
	resultChanged        = result{"change of a CoreDNSEntry until it is answered", "ms"}
	resultEntryWithdrawn = result{"lost link until its address is left out of an entry", "ms"}
	resultEntryReturned  = result{"dial of a returned cluster until its address in an entry", "ms"}
)

var dnsLayout = layout{
	section: "dns",
	entrants: []entrant{
		{whoamiServer, "whoami", "#afb8c1", "#656c76"},
		{hostsServer, "hosts", "#818b98", "#9198a1"},
		{legacyServer, "former Corefile", "#bc4c00", "#f0883e"},
		{dnsServer, "kubelink, dns, warm", "#0969da", "#4493f8"},
		{dnsBefore, "kubelink before, dns, warm", "", ""},
		{dnsColdServer, "kubelink, dns, cold", "#6fb1f7", "#1f4f8f"},
		{dnsColdBefore, "kubelink before, dns, cold", "", ""},
		{kubernetesServer, "kubelink, kubernetes", "#1a7f37", "#3fb950"},
		{kubernetesBefore, "kubelink before, kubernetes", "", ""},
		{globalServer, "kubelink, global domain", "#8250df", "#ab7df8"},
		{globalBefore, "kubelink before, global domain", "", ""},
		{whoamiBare, "whoami, bare", "", ""},
		{dnsBare, "kubelink, dns, warm, bare", "", ""},
		{kubernetesBare, "kubelink, kubernetes, bare", "", ""},
		{globalBare, "kubelink, global domain, bare", "", ""},
		{linksServer, fmt.Sprintf("kubelink, %d links", manyLinks), "#0969da", "#4493f8"},
	},
	measures: dnsMeasures,
	present: map[string]string{dnsBefore: dnsServer, dnsColdBefore: dnsColdServer, kubernetesBefore: kubernetesServer,
		globalBefore: globalServer},
	tables: func(r *results) []table {
		return []table{r.namesTable(existingNames), r.namesTable(missingNames), r.beforeTable(), r.linksTable()}
	},
	panels: []panel{
		newPanel("Queries, 1000/s", "more is better",
			"existing names", resultQueries(existingNames), "missing names", resultQueries(missingNames)),
		newPanel(fmt.Sprintf("Median latency at %d/s, ms", moderateRate), "less is better",
			"existing names", resultMedianLatency(existingNames), "missing names", resultMedianLatency(missingNames)),
		newPanel(fmt.Sprintf("p99 latency at %d/s, ms", moderateRate), "less is better",
			"existing names", result99Latency(existingNames), "missing names", result99Latency(missingNames)),
	},
	promises: dnsPromises(),
}

func dnsPromises() (all []promise) {
	for _, kind := range []string{existingNames, missingNames} {
		for _, of := range []string{dnsServer, kubernetesServer, globalServer} {
			all = append(all,
				promise{what: resultQueries(kind), of: of, to: whoamiServer, bound: 1},
				promise{what: resultQueries(kind), of: of, to: legacyServer, bound: 3})
		}
		all = append(all, promise{what: resultQueries(kind), of: dnsColdServer, to: legacyServer, bound: 1.5})
	}
	return append(all,
		promise{what: resultStart, of: linksServer, bound: 5, atMost: true, worst: true},
		promise{what: resultResident, of: linksServer, bound: 150, atMost: true, worst: true},
		promise{what: resultWithdrawn, of: linksServer, bound: 1000, atMost: true, worst: true},
		promise{what: resultReturned, of: linksServer, bound: 1000, atMost: true, worst: true},
		promise{what: resultChanged, of: linksServer, bound: 1000, atMost: true, worst: true},
		promise{what: resultEntryWithdrawn, of: linksServer, bound: 1000, atMost: true, worst: true},
		promise{what: resultEntryReturned, of: linksServer, bound: 1000, atMost: true, worst: true},
	)
}

// linksTable has a row per result.
func (r *results) linksTable() table {
	t := table{words: 2, rows: [][]string{{fmt.Sprintf("%d links", manyLinks), "unit", "median", "maximum", "times"}}}
	for _, what := range []result{resultStart, resultResident, resultResidentPeak, resultWithdrawn, resultWaited,
		resultReturned, resultChanged, resultEntryWithdrawn, resultEntryReturned} {
		if values := r.values[what][linksServer]; len(values) > 0 {
			t.rows = append(t.rows, []string{what.title, what.unit,
				what.formatValue(r.median(what, linksServer)), what.formatValue(slices.Max(values)), fmt.Sprint(len(values))})
		}
	}
	return t
}

// namesTable has a row per contender. It compares contenders of the same plugin chain; the former Corefile is not there
// without the chain.
func (r *results) namesTable(kind string) table {
	queries, cpu, median, p99 := resultQueries(kind), resultCPU(kind), resultMedianLatency(kind), result99Latency(kind)
	t := table{words: 1, rows: [][]string{{kind + " names", queries.unit, "/ whoami", "/ former", "CPU, µs",
		fmt.Sprintf("median at %d/s, ms", moderateRate), "p99, ms"}}}
	names, titles := r.entrantsWith(queries)
	for i, name := range names {
		whoami, former := whoamiServer, r.ratio(queries, name, legacyServer).String()
		if isBare(name) {
			whoami, former = whoamiBare, "–"
		}
		t.rows = append(t.rows, []string{titles[i], r.formatMedian(queries, name),
			r.ratio(queries, name, whoami).String(), former,
			r.formatMedian(cpu, name), r.formatMedian(median, name), r.formatMedian(p99, name)})
	}
	return t
}

// beforeTable has kubelink's medians as multiples of the medians of the binary of -before.
func (r *results) beforeTable() table {
	t := table{words: 2, rows: [][]string{{"kubelink / kubelink before", "", "1000/s",
		"CPU", fmt.Sprintf("median at %d/s", moderateRate), "p99"}}}
	for _, kind := range []string{existingNames, missingNames} {
		names, titles := r.entrantsWith(resultQueries(kind))
		for i, name := range names {
			present, ok := r.present[name]
			if !ok || len(r.values[resultQueries(kind)][present]) == 0 {
				continue
			}
			row := []string{strings.Replace(titles[i], " before", "", 1), kind + " names"}
			for _, what := range []result{resultQueries(kind), resultCPU(kind), resultMedianLatency(kind),
				result99Latency(kind)} {
				row = append(row, r.ratio(what, present, name).String())
			}
			t.rows = append(t.rows, row)
		}
	}
	return t
}
