package main

// This file draws the results: a panel per measure, a bar per contender. The colours follow the reader's choice of
// light or dark mode.

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// panel is a small chart of one unit with a group of bars per result.
type panel struct {
	title  string
	note   string
	groups []struct {
		name string
		what result
	}
}

func newPanel(title, note string, namesAndResults ...any) panel {
	p := panel{title: title, note: note}
	for i := 0; i < len(namesAndResults); i += 2 {
		p.groups = append(p.groups, struct {
			name string
			what result
		}{namesAndResults[i].(string), namesAndResults[i+1].(result)})
	}
	return p
}

const (
	panelWidth, panelHeight = 300.0, 220.0
	plotColumns             = 3
	margin                  = 16.0
)

// plotStyle returns the style sheet. Bars have classes with the names of the entrants. Readers can tell the colours
// apart in both modes, also if they are colour-blind.
func (l *layout) plotStyle() string {
	fills := func(colour func(entrant) string) (css string) {
		for _, e := range l.entrants {
			if colour(e) == "" {
				continue
			}
			css += fmt.Sprintf(".%s { fill: %s; } ", e.name, colour(e))
		}
		return strings.TrimSpace(css)
	}
	return fmt.Sprintf(`<style>
text { font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328; }
.title { font-weight: 600; font-size: 13px; }
.note, .group { fill: #59636e; font-size: 11px; }
.value { font-size: 10px; text-anchor: middle; }
.group { text-anchor: middle; }
.axis { stroke: #d1d9e0; }
%s
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc; }
.note, .group { fill: #9198a1; }
.axis { stroke: #3d444d; }
%s
}
</style>
`, fills(func(e entrant) string { return e.light }), fills(func(e entrant) string { return e.dark }))
}

// drawPlot returns the results as SVG.
func (r *results) drawPlot() string {
	var shown []panel
	var whats []result
	for _, p := range r.panels {
		for _, g := range p.groups {
			if len(r.values[g.what]) > 0 {
				whats = append(whats, g.what)
				if len(shown) == 0 || shown[len(shown)-1].title != p.title {
					shown = append(shown, p)
				}
			}
		}
	}
	names, titles := r.drawnEntrants(whats...)
	const legend = 28.0
	rows := (len(shown) + plotColumns - 1) / plotColumns
	width := plotColumns*panelWidth + (plotColumns+1)*margin
	height := legend + float64(rows)*(panelHeight+margin) + margin
	var b strings.Builder
	fmt.Fprintf(&b,
		`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" width="%.0f" height="%.0f" role="img">`+
			"\n<title>kubelink compared</title>\n%s",
		width, height, width, height, r.plotStyle())
	x := margin
	for i, title := range titles {
		fmt.Fprintf(&b,
			`<rect class="%s" x="%.0f" y="10" width="12" height="12" rx="2"/><text x="%.0f" y="20">%s</text>`+"\n", names[i], x,
			x+18, html.EscapeString(title))
		x += 18 + 7.2*float64(len(title)) + 20
	}
	for i, p := range shown {
		fmt.Fprintf(&b, `<g transform="translate(%.0f %.0f)">`+"\n", margin+float64(i%plotColumns)*(panelWidth+margin),
			legend+margin+float64(i/plotColumns)*(panelHeight+margin))
		r.drawPanel(&b, p, names)
		b.WriteString("</g>\n")
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// drawnEntrants returns the entrants with colours that have any of these results.
func (r *results) drawnEntrants(whats ...result) (names, titles []string) {
	all, allTitles := r.entrantsWith(whats...)
	for i, name := range all {
		if slices.ContainsFunc(r.entrants, func(e entrant) bool { return e.name == name && e.light != "" }) {
			names, titles = append(names, name), append(titles, allTitles[i])
		}
	}
	return names, titles
}

func (r *results) drawPanel(b *strings.Builder, p panel, names []string) {
	const top, bottom = 56.0, panelHeight - 22
	most := 0.0
	for _, g := range p.groups {
		for _, name := range names {
			if v := r.median(g.what, name); v > most { // NaN is not greater
				most = v
			}
		}
	}
	fmt.Fprintf(b, `<text class="title" x="0" y="14">%s</text><text class="note" x="0" y="30">%s</text>`+"\n",
		html.EscapeString(p.title), p.note)
	fmt.Fprintf(b, `<line class="axis" x1="0" x2="%.0f" y1="%.1f" y2="%.1f"/>`+"\n", panelWidth, bottom, bottom)
	groupWidth := panelWidth / float64(len(p.groups))
	bar := math.Min(36, (groupWidth-24)/float64(len(names)))
	for i, g := range p.groups {
		center := groupWidth * (float64(i) + 0.5)
		x := center - bar*float64(len(names))/2
		for _, name := range names {
			if v := r.median(g.what, name); !math.IsNaN(v) && most > 0 {
				h := math.Max(1, v/most*(bottom-top))
				fmt.Fprintf(b,
					`<rect class="%s" x="%.1f" y="%.1f" width="%.1f" height="%.1f" rx="2"/>`+
						`<text class="value" x="%.1f" y="%.1f">%s</text>`+"\n",
					name, x+1.5, bottom-h, bar-3, h, x+bar/2, bottom-h-4, g.what.formatValue(v))
			}
			x += bar
		}
		fmt.Fprintf(b, `<text class="group" x="%.1f" y="%.1f">%s</text>`+"\n", center, bottom+16, g.name)
	}
}
