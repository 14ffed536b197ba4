package migrate

// The Corefile: that of deploy/base, with the stanza that the flags of the broker make.

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"

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
		r.makeStanza()
		if err := r.makeCorefile(); err != nil {
			return nil, err
		}
	}
	r.noteRest()
	return r, nil
}

func (r *Result) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

// get returns the value of a flag of the broker, as a Corefile writes it; empty: it has its default.
func (r *Result) get(flag string) string {
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

// has tells whether the stanza has a property.
func (r *Result) has(property string) bool { return r.value(property) != nil }

// value returns the value of a property; nil: the stanza does not have it.
func (r *Result) value(property string) *string {
	if i := slices.IndexFunc(r.stanza, func(l line) bool { return l.property == property }); i >= 0 {
		return &r.stanza[i].value
	}
	return nil
}

// drop takes a property out of the stanza.
func (r *Result) drop(property, why string) {
	if !r.has(property) {
		return
	}
	r.stanza = slices.DeleteFunc(r.stanza, func(l line) bool { return l.property == property })
	r.note("%s is left out: %s", property, why)
}

// makeStanza collects the properties, and leaves out what the plugin refuses since it never had an effect.
func (r *Result) makeStanza() {
	for _, f := range flags {
		v := r.get(f.Name)
		if f.Where != Property || v == "" || r.has(f.What) {
			continue
		}
		if f.isSwitch && v == "true" {
			v = ""
		}
		if f.Name == "name" && (v == "kubelink" || r.get("lease-name") != "") {
			continue
		}
		if f.Name == "served-links" {
			v = strings.Join(strings.FieldsFunc(v, func(c rune) bool { return c == ',' || c == ' ' }), ",")
		}
		r.stanza = append(r.stanza, line{f.What, v})
	}
	mode := r.get("mode")
	for _, prop := range []string{"certfile", "keyfile", "cacertfile"} {
		if mode == "wireguard" {
			r.drop(prop, "mode wireguard has no certificate")
		} else if r.has("secret") {
			r.drop(prop, "the certificate comes from the secret")
		}
	}
	switch hasCertificate := r.has("secret") || r.has("certfile"); {
	case mode == "none":
		for _, prop := range []string{"auto-connect", "dns-advertisement", "service-account"} {
			r.drop(prop, "in mode none there is no connection to peers")
		}
	case mode == "wireguard":
		r.drop("auto-connect", "in mode wireguard, a peer without KubeLink has no key here")
	case !hasCertificate:
		r.drop("auto-connect", "it needs a certificate, by which peers are known")
		r.drop("service-account", "it needs a certificate: a token must not travel without encryption")
	}
	r.completeCertificate(mode)
	if r.has("cluster-name") && !r.has("link-address") {
		r.drop("cluster-name", "without link-address there is no default mesh; its LocalLink object defines it")
	}
	if p := r.get("dns-propagation"); p == "" || p == "none" {
		r.drop("coredns-configure", "without dns-propagation there are no names")
	} else if !r.has("service-cidr") && !r.has("coredns-service-ip") {
		r.drop("coredns-configure", "it needs service-cidr, or coredns-service-ip")
	}
}

// completeCertificate adds what a managed secret needs.
func (r *Result) completeCertificate(mode string) {
	manage := r.value("secret-manage-mode")
	switch {
	case manage == nil || *manage == "none":
	case mode == "wireguard" && *manage == "cert":
		r.drop("secret-manage-mode", "a certificate service makes no WireGuard keys")
	case mode == "wireguard":
	case !r.has("secret"):
		r.drop("secret-manage-mode", "there is no secret")
	case !r.has("dns-name"):
		r.stanza = append(r.stanza, line{"dns-name", "{$ENDPOINT}"})
		if r.options.Endpoint == "" {
			r.note("dns-name is the variable ENDPOINT of the Deployment: set it to the name that peers use (--endpoint)")
		} else {
			*r.value("dns-name") = r.options.Endpoint
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
	if domain := r.get("mesh-domain"); domain != "" {
		r.Corefile = strings.Replace(r.Corefile, "kubelink:1053", strings.TrimSuffix(domain, ".")+":1053", 1)
	}
	r.addPlugins()
	r.setClients()
	return nil
}

// addPlugins adds what other plugins do.
func (r *Result) addPlugins() {
	var extra string
	switch strings.ToLower(r.get("log-level")) {
	case "debug", "trace":
		extra += "    debug\n"
	}
	if class := r.get("dns-log-class"); class != "" {
		extra += "    log . {\n        class " + class + "\n    }\n"
	}
	if r.get("cpuprofile") != "" {
		extra += "    pprof\n"
	}
	r.Corefile = strings.Replace(r.Corefile, "    errors\n", "    errors\n"+extra, 1)
	port, bind := r.get("server-port-http"), r.get("bind-address-http")
	if port == "" {
		return
	}
	r.Corefile = strings.Replace(r.Corefile, "prometheus {$PAGES_IP}:10533", "prometheus "+net.JoinHostPort(bind, port), 1)
	if bind == "" {
		r.note("port %s (metrics) is on all addresses, as it was: prometheus {$PAGES_IP}:%s closes it", port, port)
	}
	r.note("health is at port 10531 (/health), readiness at port 10532 (/ready)")
}

// setClients puts the networks whose members may ask into the Corefile.
func (r *Result) setClients() {
	networks := map[string][]string{"{$POD_CIDR}": {r.get("pod-cidr")}, "{$NODE_CIDR}": {r.get("node-cidr")},
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
	if r.get("pod-cidr") == "" {
		before, rest, _ := strings.Cut(r.Corefile, "    acl {")
		_, after, _ := strings.Cut(rest, "\n    }\n")
		r.Corefile = before + after
		r.note("acl is left out, since pod-cidr is not known: everybody may ask the DNS port")
	} else if len(r.meshCIDRs()) == 0 {
		r.note("the networks of the meshes are in LocalLink objects: give them with --mesh-cidr, or add them to acl, " +
			"so that they may ask the DNS port")
	}
}

// meshCIDRs are the networks of the meshes, as far as they are known.
func (r *Result) meshCIDRs() []string {
	if len(r.options.MeshCIDRs) > 0 {
		return r.options.MeshCIDRs
	}
	if p, err := netip.ParsePrefix(r.get("link-address")); err == nil {
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
			r.note("--%s=%s is gone: %s", f.Name, v, f.Note)
		case Router:
			if v != "none" && v != "" {
				r.note("--%s=%s is a flag of kubelink-router: %s", f.Name, v, f.Note)
			}
		default:
			r.note("--%s=%s: %s %s; %s", f.Name, v, f.Where, f.What, f.Note)
		}
	}
	if ns := r.source.namespace; ns != "" && ns != install.Namespace {
		r.note("kubelink has the namespace %s: copy the secret from %s, and let the endpoint lead to the service there",
			install.Namespace, ns)
	}
	if r.source.hasRouter {
		r.note("kubelink-router %s", strings.Join(r.source.RouterArguments(), " "))
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
