package stubdomain

// What the Corefile of the cluster's DNS says.

import (
	"strings"

	"github.com/coredns/caddy/caddyfile"
)

// corefile is what the configurer needs to know of a Corefile. It does not see what the Corefile imports.
type corefile struct {
	port    string // of the server block for the root, which receives the queries of pods
	reload  bool   // CoreDNS notices changes by itself
	imports bool   // the Corefile imports server blocks
}

// readCorefile looks at the tokens of a Corefile only, so it reads any text. A parser would import what the Corefile
// imports, or, as that of corefile-migration, panic on a brace in the wrong place.
func readCorefile(text string) corefile {
	c := corefile{port: "53"}
	depth, line := 0, 0
	for d := caddyfile.NewDispenser(corefileKey, strings.NewReader(text)); d.Next(); {
		token, first := d.Val(), d.Line() != line
		line = d.Line()
		switch {
		case token == "{":
			depth++
		case token == "}":
			depth--
		case token == "reload" && first && depth <= 1: // deeper it is an option of another plugin
			c.reload = true
		case token == "import" && depth == 0:
			c.imports = true
		case depth == 0:
			zone := strings.TrimSuffix(strings.TrimPrefix(token, "dns://"), ",")
			if port, ok := strings.CutPrefix(zone, ".:"); ok {
				c.port = port
			}
		}
	}
	return c
}
