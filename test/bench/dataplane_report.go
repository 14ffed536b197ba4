package main

// This file defines tables, plots and promises of the dataplane's results.

import "slices"

var words = map[direction]string{up: "upload", down: "download"}

func resultStream(n int, d direction) result {
	flows := map[int]string{1: "one TCP flow", 4: "four TCP flows"}[n]
	return result{flows + ", " + words[d], "Gbit/s"}
}
func resultDatagrams(d direction) result {
	return result{"UDP, 1200 bytes, loss < 1 %, " + words[d], "1000/s"}
}
func resultTunnelCPU(d direction) result  { return result{"CPU, tunnel processes, " + words[d], "s/GB"} }
func resultMachineCPU(d direction) result { return result{"CPU, whole machine, " + words[d], "s/GB"} }

var (
	resultRequests   = result{"HTTP requests, 16 connections", "1000/s"}
	resultIdleMedian = result{"round trip, idle, median", "ms"}
	resultIdle99     = result{"round trip, idle, p99", "ms"}
	resultLoadMedian = result{"round trip beside one flow, median", "ms"}
	resultLoad99     = result{"round trip beside one flow, p99", "ms"}
	resultLoadLost   = result{"echoes lost beside one flow", "%"}
	resultLoadRate   = result{"one TCP flow beside the echoes", "Gbit/s"}
	resultMemory     = result{"memory, both tunnel processes", "MiB"}
	resultPeak       = result{"memory, both tunnel processes, peak", "MiB"}
)

var dataplaneLayout = layout{
	section: "dataplane",
	entrants: []entrant{
		{plainPath, "plain path", "#afb8c1", "#656c76"},
		{bridgeLink, "kubelink", "#0969da", "#4493f8"},
		{bridgeBefore, "kubelink before", "", ""},
		{serviceLink, "kubelink, mesh service", "", ""},
		{wireguardGo, "wireguard-go", "#bc4c00", "#f0883e"},
		{relayPath, "relay", "", ""},
		{kubelinkWG, "kubelink wireguard, user space", "#8250df", "#a371f7"},
		{plainTUNLink, "kubelink, plain TUN", "#6fb1f7", "#1f4f8f"},
		{anotherLink, "from another node", "", ""},
		{vxlanLink, "from another node, VXLAN", "", ""},
	},
	measures: dataplaneMeasures,
	present:  map[string]string{bridgeBefore: bridgeLink},
	tables:   func(r *results) []table { return []table{r.dataplaneTable()} },
	panels: []panel{
		newPanel("One TCP flow, Gbit/s", "more is better", "upload", resultStream(1, up), "download", resultStream(1, down)),
		newPanel("Four TCP flows, Gbit/s", "more is better", "upload", resultStream(4, up),
			"download", resultStream(4, down)),
		newPanel("UDP of 1200 bytes, 1000/s", "more is better", "upload", resultDatagrams(up),
			"download", resultDatagrams(down)),
		newPanel("HTTP requests, 1000/s", "more is better", "16 connections", resultRequests),
		newPanel("Round trip beside a flow, ms", "less is better", "median", resultLoadMedian, "p99", resultLoad99),
		newPanel("CPU of the tunnel processes, s/GB", "less is better", "upload", resultTunnelCPU(up),
			"download", resultTunnelCPU(down)),
	},
	promises: slices.Concat(bridgePromises(), servicePromises(), wireguardPromises()),
}

// rates are the results of which more is better.
var rates = []result{resultStream(1, up), resultStream(1, down), resultStream(4, up), resultStream(4, down),
	resultDatagrams(up), resultDatagrams(down), resultRequests}

// minRelay is what the relay has to make of the plain path, else it is no bound.
const minRelay = 0.4

// bridgePromises: faster than wireguard-go by far, near to what a relay in user space can reach, and with offloads no
// worse than without.
func bridgePromises() (all []promise) {
	for _, d := range []direction{up, down} {
		all = append(all,
			promise{what: resultStream(1, d), of: bridgeLink, to: wireguardGo, bound: 2.3},
			promise{what: resultStream(4, d), of: bridgeLink, to: wireguardGo, bound: 2.6},
			promise{what: resultStream(4, d), of: bridgeLink, to: relayPath, bound: 0.65,
				provided: &promise{what: resultStream(4, d), of: relayPath, to: plainPath, bound: minRelay}},
			promise{what: resultDatagrams(d), of: bridgeLink, to: wireguardGo, bound: 4},
			promise{what: resultTunnelCPU(d), of: bridgeLink, to: wireguardGo, bound: 0.6, atMost: true},
			promise{what: resultStream(1, d), of: anotherLink, to: bridgeLink, bound: 0.8},
			promise{what: resultStream(1, d), of: vxlanLink, to: bridgeLink, bound: 0.8})
	}
	all = append(all, promise{what: resultRequests, of: bridgeLink, to: wireguardGo, bound: 2},
		promise{what: resultLoadMedian, of: bridgeLink, to: wireguardGo, bound: 0.5, atMost: true})
	for _, what := range dataplaneOrder {
		switch what {
		case resultMemory, resultPeak: // a TUN without offloads needs no large buffers
			continue
		case resultLoadLost, resultLoadRate: // these say what the round trips beside a flow are worth
			continue
		}
		all = append(all, promise{what: what, of: bridgeLink, to: plainTUNLink, noWorse: true,
			atMost: !slices.Contains(rates, what)})
	}
	return all
}

// servicePromises: the translation of a mesh service costs little.
func servicePromises() (all []promise) {
	for _, what := range rates {
		all = append(all, promise{what: what, of: serviceLink, to: bridgeLink, bound: 0.9})
	}
	return all
}

// wireguardPromises: mode wireguard costs nothing compared with wireguard-go alone.
func wireguardPromises() (all []promise) {
	const bound = 0.95
	for _, what := range rates {
		all = append(all, promise{what: what, of: kubelinkWG, to: wireguardGo, bound: bound})
	}
	for _, what := range []result{resultIdleMedian, resultLoadMedian, resultTunnelCPU(up), resultTunnelCPU(down)} {
		all = append(all, promise{what: what, of: kubelinkWG, to: wireguardGo, bound: 1 / bound, atMost: true})
	}
	return all
}

// dataplaneOrder is the order of rows in the table.
var dataplaneOrder = []result{
	resultStream(1, up), resultStream(1, down), resultStream(4, up), resultStream(4, down),
	resultDatagrams(up), resultDatagrams(down), resultRequests,
	resultIdleMedian, resultIdle99, resultLoadMedian, resultLoad99, resultLoadLost, resultLoadRate,
	resultTunnelCPU(up), resultTunnelCPU(down), resultMachineCPU(up), resultMachineCPU(down),
	resultMemory, resultPeak,
}

// dataplaneTable has the medians, each with its range, and kubelink's multiples of other contenders.
func (r *results) dataplaneTable() table {
	names, titles := r.entrantsWith(dataplaneOrder...)
	head := append([]string{"", "unit"}, titles...)
	var to []string
	for i, name := range names {
		others := []string{wireguardGo, plainPath, relayPath, bridgeBefore}
		if slices.Contains(others, name) && slices.Contains(names, bridgeLink) {
			to = append(to, name)
			head = append(head, "kubelink / "+titles[i])
		}
	}
	rows := [][]string{head}
	for _, what := range dataplaneOrder {
		if len(r.values[what]) == 0 {
			continue
		}
		row := []string{what.title, what.unit}
		for _, name := range names {
			row = append(row, r.formatMedian(what, name))
		}
		for _, name := range to {
			row = append(row, r.ratio(what, bridgeLink, name).String())
		}
		rows = append(rows, row)
	}
	return table{rows, 2}
}
