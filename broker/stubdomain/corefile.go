package stubdomain

// What the Corefile of the cluster's DNS says.

import (
	"strings"

	migration "github.com/coredns/corefile-migration/migration/corefile"
)

// corefile is what the configurer needs to know of a Corefile. It does not see what the Corefile imports.
type corefile struct {
	port    string // of the server block for the root, which receives the queries of pods
	reload  bool   // CoreDNS notices changes by itself
	imports bool   // the Corefile imports server blocks
}

// readCorefile reads the text of a Corefile.
func readCorefile(text string) corefile {
	c := corefile{port: "53"}
	parsed, err := migration.New(text)
	if err != nil { // the parser finds no errors today: it reads tokens
		return c
	}
	for _, s := range parsed.Servers {
		switch s.DomPorts[0] {
		case "import":
			c.imports = true
		case "reload": // one block without braces has its plugins where other Corefiles have blocks
			c.reload = true
		}
		for _, zone := range s.DomPorts {
			zone = strings.TrimSuffix(strings.TrimPrefix(zone, "dns://"), ",")
			if port, ok := strings.CutPrefix(zone, ".:"); ok {
				c.port = port
			}
		}
		for _, p := range s.Plugins {
			c.reload = c.reload || p.Name == "reload"
		}
	}
	return c
}
