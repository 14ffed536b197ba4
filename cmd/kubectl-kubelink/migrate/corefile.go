package migrate

// The Corefile: that of deploy/base, with the stanza that the flags of the broker make.

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"sigs.k8s.io/yaml"

	"github.com/mandelsoft/kubelink/cmd/kubectl-kubelink/install"
	"github.com/mandelsoft/kubelink/deploy"
)

// Options are what former flags do not know.
type Options struct {
	Image     string   // of kubelink
	MeshCIDRs []string // networks of the meshes
	Endpoint  string   // name of this cluster for its peers
}

// Result is what a source becomes.
type Result struct {
	Corefile string   // empty: the source has no broker
	Notes    []string // what is different, one per line

	source  *Source
	options Options
	stanza  []line
}

// line is a property with its value.
type line struct{ property, value string }

// Migrate makes the Corefile.
func Migrate(s *Source, o Options) (*Result, error) {
	r := &Result{source: s, options: o}
	if !s.hasBroker && !s.hasRouter {
		return nil, errors.New("there are no flags: give those of the former program after --, or its Deployment with -f")
	}
	if s.hasBroker {
		if err := r.refuseText(); err != nil {
			return nil, err
		}
		r.makeStanza()
		if err := r.makeCorefile(); err != nil {
			return nil, err
		}
	}
	r.noteRest()
	return r, nil
}

// addNote adds a line.
func (r *Result) addNote(format string, args ...any) {
	r.Notes = append(r.Notes, strings.Map(func(c rune) rune {
		if unicode.IsControl(c) {
			return ' '
		}
		return c
	}, fmt.Sprintf(format, args...)))
}

// refuseText refuses values that would be more than a word of the Corefile: lines, blocks, comments or quoted texts.
func (r *Result) refuseText() error {
	given := map[string][]string{"--mesh-cidr": r.options.MeshCIDRs, "--endpoint": {r.options.Endpoint}}
	for _, f := range flags {
		if f.Where == Property || f.Where == Plugin {
			given["--"+f.Name] = []string{r.getFlag(f.Name)}
		}
	}
	delete(given, "--cpuprofile") // whether it is there counts
	for _, flag := range slices.Sorted(maps.Keys(given)) {
		for _, v := range given[flag] {
			if flag == "--served-links" {
				v = strings.ReplaceAll(v, " ", ",")
			}
			rest := corefileVariable.ReplaceAllString(v, "")
			if strings.HasPrefix(v, "#") || strings.ContainsFunc(rest, func(c rune) bool {
				return unicode.IsSpace(c) || unicode.IsControl(c) || strings.ContainsRune("{}\"`\\", c)
			}) {
				return fmt.Errorf("%s %q: a Corefile needs one word without quotes, braces and backslashes", flag, v)
			}
		}
	}
	return nil
}

// getFlag returns the value of a flag of the broker, as a Corefile writes it; empty: it has its default.
func (r *Result) getFlag(flag string) string {
	v := variable.ReplaceAllStringFunc(strings.TrimSpace(r.source.broker[flag]), func(ref string) string {
		name := ref[2 : len(ref)-1]
		if value, known := r.source.env[name]; known {
			return value
		}
		if flag == "node-ip" {
			return "{$NODE_IP}" // the Deployment of kubelink has it
		}
		return "{$" + name + "}"
	})
	if v == "0" || v == "false" {
		return ""
	}
	return v
}

// variable is a reference to a variable in the arguments of a container.
var variable = regexp.MustCompile(`\$\([A-Za-z_][A-Za-z0-9_.-]*\)`)

// hasProperty tells whether the stanza has a property.
func (r *Result) hasProperty(property string) bool { return r.findProperty(property) != nil }

// findProperty returns the value of a property; nil: the stanza does not have it.
func (r *Result) findProperty(property string) *string {
	if i := slices.IndexFunc(r.stanza, func(l line) bool { return l.property == property }); i >= 0 {
		return &r.stanza[i].value
	}
	return nil
}

// dropProperty takes a property out of the stanza.
func (r *Result) dropProperty(property, why string) {
	if !r.hasProperty(property) {
		return
	}
	r.stanza = slices.DeleteFunc(r.stanza, func(l line) bool { return l.property == property })
	r.addNote("%s is left out: %s", property, why)
}

// makeStanza collects the properties, and leaves out what the plugin refuses since it never had an effect.
func (r *Result) makeStanza() {
	for _, f := range flags {
		v := r.getFlag(f.Name)
		if f.Where != Property || v == "" || r.hasProperty(f.What) {
			continue
		}
		if f.isSwitch && v == "true" {
			v = ""
		}
		if f.Name == "name" && (v == "kubelink" || r.getFlag("lease-name") != "") {
			continue
		}
		if f.Name == "served-links" {
			v = strings.Join(strings.FieldsFunc(v, func(c rune) bool { return c == ',' || c == ' ' }), ",")
		}
		if f.Name == "log-level" {
			v = readLevel(v)
		}
		r.stanza = append(r.stanza, line{f.What, v})
	}
	mode := r.getFlag("mode")
	for _, prop := range []string{"certfile", "keyfile", "cacertfile"} {
		if mode == "wireguard" {
			r.dropProperty(prop, "mode wireguard has no certificate")
		} else if r.hasProperty("secret") {
			r.dropProperty(prop, "the certificate comes from the secret")
		}
	}
	switch hasCertificate := r.hasProperty("secret") || r.hasProperty("certfile"); {
	case mode == "none":
		for _, prop := range []string{"auto-connect", "dns-advertisement", "service-account"} {
			r.dropProperty(prop, "in mode none there is no connection to peers")
		}
	case mode == "wireguard":
		r.dropProperty("auto-connect", "in mode wireguard, a peer without KubeLink has no key here")
	case !hasCertificate:
		r.dropProperty("auto-connect", "it needs a certificate, by which peers are known")
		r.dropProperty("service-account", "it needs a certificate: a token must not travel without encryption")
	}
	r.completeCertificate(mode)
	if r.hasProperty("cluster-name") && !r.hasProperty("link-address") {
		r.dropProperty("cluster-name", "without link-address there is no default mesh; its LocalLink object defines it")
	}
	if p := r.getFlag("dns-propagation"); p == "" || p == "none" {
		r.dropProperty("coredns-configure", "without dns-propagation there are no names")
	} else if !r.hasProperty("service-cidr") && !r.hasProperty("coredns-service-ip") {
		r.dropProperty("coredns-configure", "it needs service-cidr, or coredns-service-ip")
	}
}

// readLevel is a level of the former program, as the property has it.
func readLevel(v string) string {
	switch v = strings.ToLower(v); v {
	case "trace":
		return "debug"
	case "warning":
		return "warn"
	case "fatal", "panic":
		return "error"
	}
	return v
}

// completeCertificate adds what a managed secret needs.
func (r *Result) completeCertificate(mode string) {
	manage := r.findProperty("secret-manage-mode")
	switch {
	case manage == nil || *manage == "none":
	case mode == "wireguard" && *manage == "cert":
		r.dropProperty("secret-manage-mode", "a certificate service makes no WireGuard keys")
	case mode == "wireguard":
	case !r.hasProperty("secret"):
		r.dropProperty("secret-manage-mode", "there is no secret")
	case !r.hasProperty("dns-name"):
		r.stanza = append(r.stanza, line{"dns-name", "{$ENDPOINT}"})
		if r.options.Endpoint == "" {
			r.addNote("dns-name is the variable ENDPOINT of the Deployment: set it to the name that peers use (--endpoint)")
		} else {
			*r.findProperty("dns-name") = r.options.Endpoint
		}
	}
}

// stanzaText is the text of the stanza, indented for a server block.
func (r *Result) stanzaText() string {
	var b strings.Builder
	for _, l := range r.stanza {
		b.WriteString(strings.TrimRight("        "+l.property+" "+l.value, " ") + "\n")
	}
	return b.String()
}

// makeCorefile puts the stanza into the Corefile of deploy/base.
func (r *Result) makeCorefile() error {
	text, err := deploy.Manifests.ReadFile("base/corefile.yaml")
	if err != nil {
		return err
	}
	var config struct {
		Data map[string]string `json:"data"`
	}
	if err := yaml.Unmarshal(text, &config); err != nil {
		return fmt.Errorf("base/corefile.yaml: %w", err)
	}
	corefile := config.Data["Corefile"]
	before, rest, ok := strings.Cut(corefile, "    kubelink {\n")
	_, after, closed := strings.Cut(rest, "    }\n")
	if !ok || !closed {
		return errors.New("base/corefile.yaml has no stanza kubelink")
	}
	r.Corefile = before + "    kubelink {\n" + r.stanzaText() + "    }\n" + after
	if domain := r.getFlag("mesh-domain"); domain != "" {
		r.Corefile = strings.Replace(r.Corefile, "kubelink:1053", strings.TrimSuffix(domain, ".")+":1053", 1)
	}
	r.addPlugins()
	r.setClients()
	return nil
}

// addPlugins adds what other plugins do.
func (r *Result) addPlugins() {
	var extra string
	if class := r.getFlag("dns-log-class"); class != "" {
		extra += "    log . {\n        class " + class + "\n    }\n"
	}
	if r.getFlag("cpuprofile") != "" {
		extra += "    pprof\n"
	}
	r.Corefile = strings.Replace(r.Corefile, "    errors\n", "    errors\n"+extra, 1)
	port, bind := r.getFlag("server-port-http"), r.getFlag("bind-address-http")
	if port == "" {
		return
	}
	address := net.JoinHostPort(bind, port)
	r.Corefile = strings.Replace(r.Corefile, "prometheus {$PAGES_IP}:10533", "prometheus "+address, 1)
	if bind == "" {
		r.addNote("port %s (metrics) is on all addresses, as it was: prometheus {$PAGES_IP}:%s closes it", port, port)
	}
	r.addNote("health is at port 10531 (/health), readiness at port 10532 (/ready)")
}

// setClients puts the networks whose members may ask into the Corefile.
func (r *Result) setClients() {
	networks := map[string][]string{"{$POD_CIDR}": {r.getFlag("pod-cidr")}, "{$NODE_CIDR}": {r.getFlag("node-cidr")},
		"{$MESH_CIDR}": r.meshCIDRs()}
	var lines []string
	for text := range strings.Lines(r.Corefile) {
		name := text[max(strings.Index(text, "{$"), 0):]
		name = name[:strings.Index(name, "}")+1]
		cidrs, isNetwork := networks[name]
		if !isNetwork || !strings.Contains(text, "allow net ") {
			lines = append(lines, text)
			continue
		}
		indent, _, _ := strings.Cut(text, "allow")
		for _, c := range cidrs {
			if c != "" {
				lines = append(lines, indent+"allow net "+c+"\n")
			}
		}
	}
	r.Corefile = strings.Join(lines, "")
	if r.getFlag("pod-cidr") == "" {
		before, rest, _ := strings.Cut(r.Corefile, "    acl {")
		_, after, _ := strings.Cut(rest, "\n    }\n")
		r.Corefile = before + after
		r.addNote("acl is left out, since pod-cidr is not known: everybody may ask the DNS port")
	} else if len(r.meshCIDRs()) == 0 {
		r.addNote("the networks of the meshes are in LocalLink objects: give them with --mesh-cidr, or add them to acl, " +
			"so that they may ask the DNS port")
	}
}

// meshCIDRs are the networks of the meshes, as far as they are known.
func (r *Result) meshCIDRs() []string {
	if len(r.options.MeshCIDRs) > 0 {
		return r.options.MeshCIDRs
	}
	if p, err := netip.ParsePrefix(r.getFlag("link-address")); err == nil {
		return []string{p.Masked().String()}
	}
	return nil
}

// noteRest tells what of the flags is not in the Corefile.
func (r *Result) noteRest() {
	for _, f := range flags {
		v, given := r.source.broker[f.Name]
		if !given {
			v, given = r.source.router[f.Name]
		}
		ofBoth := f.Name == "controllers" || f.Where == Property || f.What == "prometheus"
		if !given || ofBoth || f.Where == Router && !r.source.hasBroker {
			continue
		}
		switch f.Where {
		case Gone:
			r.addNote("--%s=%s is gone: %s", f.Name, v, f.Note)
		case Router:
			if v != "none" && v != "" {
				r.addNote("--%s=%s is a flag of kubelink-router: %s", f.Name, v, f.Note)
			}
		default:
			r.addNote("--%s=%s: %s %s; %s", f.Name, v, f.Where, f.What, f.Note)
		}
	}
	if ns := r.source.namespace; ns != "" && ns != install.Namespace {
		r.addNote("kubelink has the namespace %s: copy the secret from %s, and let the endpoint lead to the service there",
			install.Namespace, ns)
	}
	if r.source.hasRouter {
		r.addNote("kubelink-router %s", strings.Join(r.source.RouterArguments(), " "))
	}
}

// RouterArguments are those of kubelink-router.
func (s *Source) RouterArguments() (args []string) {
	for _, name := range routerFlags {
		if v := s.router[name]; v != "" {
			args = append(args, "--"+name+"="+v)
		}
	}
	return args
}
