package kubelink

// The stanza: its properties, their defaults, and what cannot work together. Every error says file
// and line, property, value and what would be right.

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"

	"github.com/miekg/dns"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/mandelsoft/kubelink/broker"
	"github.com/mandelsoft/kubelink/broker/bridge"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/pki"
)

type line struct {
	file string
	no   int
}

// parser reads one stanza.
type parser struct {
	c      *caddy.Controller
	config broker.Config
	lines  map[string]line // where each property is, and the stanza itself
}

// property is how to read one property. Its error is what is wrong with the value.
type property struct {
	least, most int // number of values
	set         func(p *parser, values []string) error
}

// one is a property with one value.
func one(set func(p *parser, value string) error) property {
	return property{1, 1, func(p *parser, values []string) error { return set(p, values[0]) }}
}

// flag is a property without value.
func flag(set func(cfg *broker.Config)) property {
	return property{0, 0, func(p *parser, _ []string) error { set(&p.config); return nil }}
}

// gone is a property of the former broker that does not mean anything any more.
func gone(prop, why string) property {
	return property{0, 1, func(p *parser, _ []string) error {
		log.Warningf("%s:%d: %s has no effect and can be removed: %s", p.c.File(), p.c.Line(), prop, why)
		return nil
	}}
}

var properties = map[string]property{
	"kubeconfig": {1, 2, func(p *parser, v []string) (err error) {
		if len(v) == 2 {
			p.config.Context = v[1]
		}
		p.config.Kubeconfig, err = p.file(v[0])
		return err
	}},
	"namespace":    one(func(p *parser, v string) error { return label(&p.config.Namespace, v) }),
	"cluster-name": one(setClusterName),
	"link-address": one(func(p *parser, v string) (err error) {
		p.config.Address, err = mesh.ClusterAddress(v)
		return err
	}),
	"mesh-domain":        one(func(p *parser, v string) error { return domain(&p.config.MeshDomain, v) }),
	"meshdns-service-ip": one(func(p *parser, v string) error { return address(&p.config.MeshDNS, v) }),

	"node-cidr":    one(func(p *parser, v string) error { return cidr(&p.config.NodeCIDR, v) }),
	"pod-cidr":     one(func(p *parser, v string) error { return cidr(&p.config.PodCIDR, v) }),
	"service-cidr": one(func(p *parser, v string) error { return cidr(&p.config.ServiceCIDR, v) }),
	"node-ip": one(func(p *parser, v string) error {
		var ip netip.Addr
		if err := address(&ip, v); err != nil {
			return err
		}
		p.config.NodeIP = ip.String()
		return nil
	}),
	"cluster-domain": one(func(p *parser, v string) error { return domain(&p.config.ClusterDomain, v) }),
	"dns-service-ip": one(func(p *parser, v string) error { return address(&p.config.ClusterDNS, v) }),

	"mode": one(func(p *parser, v string) error {
		if v == "wireguard" {
			return errors.New("mode wireguard is not in this version: use bridge")
		}
		return choice(&p.config.Mode, v, mesh.Bridge, mesh.None)
	}),
	"broker-port":     one(func(p *parser, v string) error { return port(&p.config.BrokerPort, v) }),
	"advertised-port": one(func(p *parser, v string) error { return port(&p.config.AdvertisedPort, v) }),
	"service":         one(func(p *parser, v string) error { return label(&p.config.Service, v) }),
	"ifce-name":       one(setInterface),
	"served-links":    one(setServed),
	"offload":         one(func(p *parser, v string) error { return off(&p.config.NoOffload, v) }),
	"streams":         one(func(p *parser, v string) error { return number(&p.config.Streams, v, 1, bridge.MaxStreams) }),
	"auto-connect":    flag(func(cfg *broker.Config) { cfg.AutoConnect = true }),

	"secret":     one(func(p *parser, v string) error { return name(&p.config.Secret, v) }),
	"certfile":   one(func(p *parser, v string) (err error) { p.config.CertFile, err = p.file(v); return err }),
	"keyfile":    one(func(p *parser, v string) (err error) { p.config.KeyFile, err = p.file(v); return err }),
	"cacertfile": one(func(p *parser, v string) (err error) { p.config.CAFile, err = p.file(v); return err }),
	"secret-manage-mode": one(func(p *parser, v string) error {
		return choice(&p.config.SecretManageMode, v, pki.ManageNone, pki.ManageSelf, pki.ManageCert)
	}),
	"dns-name": one(setDNSName),

	"route-table": one(func(p *parser, v string) error {
		if err := number(&p.config.RouteTable, v, 1, 1<<31-1); err != nil {
			return err
		}
		if p.config.RouteTable == 255 {
			return errors.New("table 255 (local) is the kernel's own: use 254 (main) or a table of your own")
		}
		return nil
	}),
	// The rule for the main table has priority 32766: a rule after it would have no effect.
	"rule-priority": one(func(p *parser, v string) error { return number(&p.config.RulePriority, v, 1, 32765) }),
	"ipip": one(func(p *parser, v string) error {
		if v != "none" {
			return errors.New("IPIP tunnels are not in this version: use none, or remove the property")
		}
		return nil
	}),

	"dns-propagation": one(func(p *parser, v string) error {
		return choice(&p.config.Propagation, v, mesh.PropagateNone, mesh.PropagateDNS, mesh.PropagateKubernetes)
	}),
	"dns-advertisement":  flag(func(cfg *broker.Config) { cfg.DNSAdvertisement = true }),
	"service-account":    one(setServiceAccount),
	"token-lifetime":     one(setTokenLifetime),
	"coredns-configure":  flag(func(cfg *broker.Config) { cfg.ConfigureDNS = true }),
	"coredns-service-ip": one(func(p *parser, v string) error { return address(&p.config.OwnDNS, v) }),
	"coredns-deployment": gone("coredns-deployment", "kubelink answers DNS itself, there is no deployment to restart"),
	"coredns-secret":     gone("coredns-secret", "kubelink answers DNS itself, there is no generated configuration to store"),

	"serve-stale": one(func(p *parser, v string) error { return duration(&p.config.ServeStale, v, time.Second, 72*time.Hour) }),
	"state-names": one(func(p *parser, v string) error { return off(&p.config.NoStateNames, v) }),
	"state-dir": one(func(p *parser, v string) error {
		p.config.StateDir = p.path(v)
		if info, err := os.Stat(p.config.StateDir); err == nil && !info.IsDir() {
			return errors.New("this is a file, not a directory")
		}
		return nil // it is made when it is not there
	}),

	"disable-deploy-crds": flag(func(cfg *broker.Config) { cfg.DeployCRDs = false }),
	"keep-network":        flag(func(cfg *broker.Config) { cfg.KeepNetwork = true }),
}

func (p *parser) parse() error {
	if args := p.c.RemainingArgs(); len(args) > 0 {
		return p.c.Errf("%s takes no arguments, but %q is given: the zones come from the KubeLink objects and mesh-domain", pluginName, strings.Join(args, " "))
	}
	for p.c.NextBlock() {
		key, at := p.c.Val(), line{p.c.File(), p.c.Line()}
		if key == "{" || key == "}" {
			return p.c.Errf("unexpected %q: one property per line", key)
		}
		prop, known := properties[key]
		if !known {
			return p.c.Errf("unknown property %q%s", key, suggestion(key))
		}
		if before, twice := p.lines[key]; twice {
			return p.c.Errf("%s is given twice, before at %s:%d: keep one", key, before.file, before.no)
		}
		p.lines[key] = at
		values := p.c.RemainingArgs()
		switch {
		case len(values) < prop.least:
			return p.at(key, "%s has no value", key)
		case len(values) > prop.most && prop.most == 0:
			return p.at(key, "%s takes no value, but %q is given: its presence switches it on", key, strings.Join(values, " "))
		case len(values) > prop.most:
			return p.at(key, "%s takes %s, but %q are given", key, map[int]string{1: "one value", 2: "two values at most"}[prop.most], strings.Join(values, " "))
		}
		if err := prop.set(p, values); err != nil {
			return p.at(key, "%s: %v", strings.Join(append([]string{key}, values...), " "), err)
		}
	}
	return p.combine()
}

// combine refuses properties that are right each, but cannot work together.
func (p *parser) combine() error {
	cfg := &p.config
	if p.has("cluster-name") && !p.has("link-address") {
		return p.at("cluster-name", "cluster-name %s without link-address: both together define the default mesh; add link-address, or remove cluster-name and apply a KubeLink %s with endpoint LocalLink", cfg.ClusterName, cfg.ClusterName)
	}
	if dns.IsSubDomain(cfg.MeshDomain, cfg.ClusterDomain) {
		at := "mesh-domain"
		if !p.has(at) {
			at = "cluster-domain"
		}
		if cfg.MeshDomain == cfg.ClusterDomain {
			return p.at(at, "mesh-domain and cluster-domain are both %s: names of the mesh need a domain of their own", cfg.MeshDomain)
		}
		// The cluster's DNS, which is asked for these names, asks us for those of the mesh.
		return p.at(at, "cluster-domain %s lies in mesh-domain %s: names of the mesh need a domain of their own", cfg.ClusterDomain, cfg.MeshDomain)
	}

	var files, missing []string
	for _, f := range []string{"certfile", "keyfile", "cacertfile"} {
		if p.has(f) {
			files = append(files, f)
		} else {
			missing = append(missing, f)
		}
	}
	switch {
	case len(files) > 0 && p.has("secret"):
		return p.at(files[0], "%s together with secret %s: the certificate comes from one of them; remove the other", strings.Join(files, ", "), cfg.Secret)
	case len(files) > 0 && len(missing) > 0:
		return p.at(files[0], "%s without %s: the certificate, its key and the CA are needed together", strings.Join(files, ", "), strings.Join(missing, ", "))
	}
	if cfg.SecretManageMode != pki.ManageNone {
		for _, need := range [][2]string{
			{"secret", "the name of the secret to write"},
			{"dns-name", "the name to certify, by which others reach this cluster"},
		} {
			if !p.has(need[0]) {
				return p.at("secret-manage-mode", "secret-manage-mode %s needs %s: %s", cfg.SecretManageMode, need[0], need[1])
			}
		}
	}

	if cfg.Mode == mesh.None {
		for _, prop := range []string{"auto-connect", "dns-advertisement", "service-account"} {
			if p.has(prop) {
				return p.at(prop, "%s in mode none: there are no connections to other clusters; use mode bridge or remove it", prop)
			}
		}
	}
	if cfg.AutoConnect && !p.has("secret") && len(files) == 0 {
		return p.at("auto-connect", "auto-connect without certificate: unknown clusters are recognized by theirs; add secret, or certfile, keyfile and cacertfile")
	}

	switch {
	case p.has("service-account") && !p.has("secret") && len(files) == 0:
		return p.at("service-account", "service-account without certificate: its token would be readable on the way, and sent to anybody; add secret, or certfile, keyfile and cacertfile")
	case p.has("token-lifetime") && !p.has("service-account"):
		return p.at("token-lifetime", "token-lifetime without service-account: there is no token; add service-account or remove it")
	case cfg.ConfigureDNS && cfg.Propagation == mesh.PropagateNone:
		return p.at("coredns-configure", "coredns-configure without dns-propagation: there are no names to lead the cluster's DNS to; add dns-propagation or remove it")
	case cfg.ConfigureDNS && !p.has("coredns-service-ip") && !mesh.Nth(cfg.ServiceCIDR, 11).IsValid():
		return p.at("coredns-configure", "coredns-configure needs coredns-service-ip, or service-cidr whose 11th address it is: the address of the service by which the cluster's DNS reaches kubelink")
	}

	// What the broker itself refuses starts with the property.
	if err := cfg.Validate(); err != nil {
		at, _, _ := strings.Cut(err.Error(), " ")
		if !p.has(at) {
			at = pluginName
		}
		return p.at(at, "%v", err)
	}
	return nil
}

func (p *parser) has(prop string) bool {
	_, ok := p.lines[prop]
	return ok
}

// at is an error in the form of caddy's, at the place of a property.
func (p *parser) at(prop, format string, args ...any) error {
	l := p.lines[prop]
	return fmt.Errorf("%s:%d - Error during parsing: %s", l.file, l.no, fmt.Sprintf(format, args...))
}

// suggestion names the known property that is nearest to an unknown one, if any is near.
func suggestion(key string) string {
	best, distance := "", 1+max(2, len(key)/3)
	for known := range properties {
		if d := levenshtein(key, known); d < distance || d == distance && best != "" && known < best {
			best, distance = known, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(": did you mean %q?", best)
}

// levenshtein is the number of single characters to insert, delete or replace.
func levenshtein(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}

// path is where a file is; relative names start at the root of the server block.
func (p *parser) path(v string) string {
	if root := dnsserver.GetConfig(p.c).Root; !filepath.IsAbs(v) && root != "" {
		return filepath.Join(root, v)
	}
	return v
}

// file is a file that must exist.
func (p *parser) file(v string) (string, error) {
	v = p.path(v)
	info, err := os.Stat(v)
	if err != nil {
		return "", err
	}
	if info.IsDir() {
		return "", errors.New("this is a directory, not a file")
	}
	return v, nil
}

func setClusterName(p *parser, v string) error {
	if mesh, cluster, ok := strings.Cut(v, "--"); ok {
		return fmt.Errorf("%q separates mesh and cluster in the names of links, and this is the default mesh: use %q, or apply a KubeLink %s with endpoint LocalLink for mesh %s", "--", cluster, v, mesh)
	}
	return name(&p.config.ClusterName, v)
}

func setInterface(p *parser, v string) error {
	// What the kernel accepts (dev_valid_name in net/core/dev.c); IFNAMSIZ counts the final NUL.
	if len(v) > 15 || v == "." || v == ".." || strings.ContainsAny(v, "/: \t") {
		return errors.New("not a name of a network interface: up to 15 characters without '/', ':' and blanks")
	}
	p.config.Interface = v
	return nil
}

func setServed(p *parser, v string) error {
	if v == "all" {
		return nil
	}
	for _, n := range strings.Split(v, ",") {
		var link string
		if n == "all" {
			return errors.New("all stands alone: use all, or a list of links separated by commas")
		}
		if err := name(&link, n); err != nil {
			return fmt.Errorf("link %q: %w; use all, or a list of links separated by commas, without blanks", n, err)
		}
		p.config.Served = append(p.config.Served, link)
	}
	// The order says nothing: another one is no change.
	slices.Sort(p.config.Served)
	p.config.Served = slices.Compact(p.config.Served)
	return nil
}

func setServiceAccount(p *parser, v string) error {
	account := types.NamespacedName{Namespace: "kube-system", Name: v}
	if ns, n, ok := strings.Cut(v, "/"); ok {
		account = types.NamespacedName{Namespace: ns, Name: n}
	}
	if err := label(&account.Namespace, account.Namespace); err != nil {
		return fmt.Errorf("namespace %q: %w", account.Namespace, err)
	}
	if err := name(&account.Name, account.Name); err != nil {
		return err
	}
	p.config.ServiceAccount = account
	return nil
}

func setTokenLifetime(p *parser, v string) error {
	d, err := time.ParseDuration(v)
	if err != nil {
		return errors.New("not a duration, such as 24h")
	}
	if d < 10*time.Minute || d > 1<<32*time.Second { // the API's limits
		return errors.New("the API server issues tokens for 10m and more, up to 2^32 s")
	}
	p.config.TokenLifetime = d.Truncate(time.Second)
	return nil
}

func setDNSName(p *parser, v string) error {
	if net.ParseIP(v) == nil {
		if errs := validation.IsDNS1123Subdomain(strings.ToLower(strings.TrimSuffix(v, "."))); len(errs) > 0 {
			return errors.New("neither a DNS name nor an IP address")
		}
	}
	// As certificates and endpoints spell it.
	p.config.DNSName = strings.ToLower(strings.TrimSuffix(v, "."))
	return nil
}

// name is the name of most objects.
func name(to *string, v string) error {
	if errs := validation.IsDNS1123Subdomain(v); len(errs) > 0 {
		return errors.New("not a name of an object: " + errs[0])
	}
	*to = v
	return nil
}

// label is the name of a namespace or service.
func label(to *string, v string) error {
	if errs := validation.IsDNS1123Label(v); len(errs) > 0 {
		return errors.New("not a name of a namespace or service: " + errs[0])
	}
	*to = v
	return nil
}

func domain(to *string, v string) error {
	d := plugin.Name(v).Normalize()
	if errs := validation.IsDNS1123Subdomain(strings.TrimSuffix(d, ".")); len(errs) > 0 || dns.CountLabel(d) == 0 {
		return errors.New("not a domain name, such as cluster.local")
	}
	*to = d
	return nil
}

func cidr(to *netip.Prefix, v string) error {
	p, err := netip.ParsePrefix(v)
	switch {
	case err != nil:
		return errors.New("not a network, such as 100.64.0.0/20")
	case p.Addr().Is4In6():
		return errors.New("write an IPv4 network in its own form, such as 100.64.0.0/20")
	case p != p.Masked():
		return fmt.Errorf("an address, not a network: did you mean %s?", p.Masked())
	case p.Bits() == 0:
		return errors.New("all addresses there are, not a network, such as 100.64.0.0/20")
	}
	*to = p
	return nil
}

func address(to *netip.Addr, v string) error {
	ip, err := netip.ParseAddr(v)
	if err != nil || ip.Zone() != "" || ip.IsUnspecified() {
		return errors.New("not an IP address, such as 100.64.0.10")
	}
	*to = ip.Unmap()
	return nil
}

func port(to *uint16, v string) error {
	n, err := strconv.ParseUint(v, 10, 16)
	if err != nil || n == 0 {
		return errors.New("not a port: a number from 1 to 65535")
	}
	*to = uint16(n)
	return nil
}

func number(to *int, v string, least, most int) error {
	n, err := strconv.Atoi(v)
	if err != nil || n < least || n > most {
		return fmt.Errorf("not a number from %d to %d", least, most)
	}
	*to = n
	return nil
}

// off is a property that is on or off.
func off(to *bool, v string) error {
	var o string
	err := choice(&o, v, "on", "off")
	*to = o == "off"
	return err
}

func duration(to *time.Duration, v string, least, most time.Duration) error {
	d, err := time.ParseDuration(v)
	if err != nil || d < least || d > most {
		return fmt.Errorf("not a duration from %s to %s, such as 30m", least, most)
	}
	*to = d
	return nil
}

func choice[T ~string](to *T, v string, values ...T) error {
	if !slices.Contains(values, T(v)) {
		var s []string
		for _, v := range values {
			s = append(s, string(v))
		}
		return fmt.Errorf("not one of %s", strings.Join(s, ", "))
	}
	*to = T(v)
	return nil
}
