package kubelink

// Properties that are right each, but do not work together.

import (
	"strings"

	"github.com/miekg/dns"

	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/pki"
)

// combinationChecks look at the properties of a stanza together. The first error is the one to report.
var combinationChecks = []func(p *parser) error{
	checkDefaultMesh,
	checkDomains,
	checkWireGuard,
	checkCertificateSource,
	checkManagedSecret,
	checkSystemCAs,
	checkModeNone,
	checkAutoConnect,
	checkServiceAccount,
	checkConfigureDNS,
	checkVXLAN,
	checkLease,
	checkConfig,
}

// checkCombinations refuses properties that do not work together.
func checkCombinations(p *parser) error {
	for _, check := range combinationChecks {
		if err := check(p); err != nil {
			return err
		}
	}
	return nil
}

// refuseAny refuses the first of the properties that is given; why follows its name.
func (p *parser) refuseAny(why string, props ...string) error {
	for _, prop := range props {
		if p.isGiven(prop) {
			return p.errorAt(prop, "%s %s", prop, why)
		}
	}
	return nil
}

func checkDefaultMesh(p *parser) error {
	if p.isGiven("cluster-name") && !p.isGiven("link-address") {
		return p.errorAt("cluster-name", "cluster-name %s without link-address: both together define the default mesh; "+
			"add link-address, or remove cluster-name and apply a KubeLink %s with endpoint LocalLink",
			p.config.ClusterName, p.config.ClusterName)
	}
	return nil
}

// checkDomains refuses a cluster-domain in mesh-domain: the broker asks the cluster's DNS for names of the
// cluster, and the cluster's DNS asks the broker for names of the mesh.
func checkDomains(p *parser) error {
	cfg := &p.config
	if !dns.IsSubDomain(cfg.MeshDomain, cfg.ClusterDomain) {
		return nil
	}
	at := "mesh-domain"
	if !p.isGiven(at) {
		at = "cluster-domain"
	}
	if cfg.MeshDomain == cfg.ClusterDomain {
		return p.errorAt(at, "mesh-domain and cluster-domain are both %s: names of the mesh need a domain of their own",
			cfg.MeshDomain)
	}
	return p.errorAt(at, "cluster-domain %s lies in mesh-domain %s: names of the mesh need a domain of their own",
		cfg.ClusterDomain, cfg.MeshDomain)
}

// checkWireGuard refuses what mode wireguard cannot do, and its own properties in other modes. What the legacy broker
// took in this mode without any effect has none here.
func checkWireGuard(p *parser) error {
	cfg := &p.config
	if cfg.Mode != mesh.WireGuard {
		return p.refuseAny("in mode "+string(cfg.Mode)+": it is about WireGuard; use mode wireguard or remove it",
			"wireguard-device", "keepalive")
	}
	for _, f := range certificateFiles {
		p.dropProperty(f, "mode wireguard has no certificate; its key comes from the secret")
	}
	p.dropProperty("auto-connect", "in mode wireguard, a peer without KubeLink has no key here")
	cfg.CertFile, cfg.KeyFile, cfg.CAFile, cfg.AutoConnect, cfg.AutoNetworks = "", "", "", false, nil
	switch {
	case cfg.Secret == "":
		return p.errorAt("mode", "mode wireguard needs secret: the name of the secret with the private key of this cluster")
	case cfg.SecretManageMode == pki.ManageCert:
		return p.errorAt("secret-manage-mode", "secret-manage-mode cert in mode wireguard: "+
			"a certificate service makes no WireGuard keys; use self or none")
	}
	return p.refuseAny("in mode wireguard: it is about the connections of mode bridge; remove it",
		"streams", "offload", "trust-system-cas")
}

// certificateFiles are the properties that together replace secret.
var certificateFiles = []string{"certfile", "keyfile", "cacertfile"}

// checkCertificateSource makes sure that the certificate comes from a secret or from three files.
func checkCertificateSource(p *parser) error {
	var files, missing []string
	for _, f := range certificateFiles {
		if p.isGiven(f) {
			files = append(files, f)
		} else if f != "cacertfile" || !p.config.SystemCAs {
			missing = append(missing, f)
		}
	}
	switch {
	case len(files) > 0 && p.isGiven("secret"):
		return p.errorAt(files[0],
			"%s together with secret %s: the certificate comes from one of them; remove the other",
			strings.Join(files, ", "), p.config.Secret)
	case len(files) > 0 && len(missing) > 0:
		return p.errorAt(files[0], "%s without %s: the certificate, its key and the CA are needed together",
			strings.Join(files, ", "), strings.Join(missing, ", "))
	}
	return nil
}

// hasCertificate tells whether the broker has a certificate, or the key of mode wireguard. checkCertificateSource has
// found that the files are complete.
func hasCertificate(p *parser) bool { return p.isGiven("secret") || p.isGiven(certificateFiles[0]) }

func checkManagedSecret(p *parser) error {
	if p.config.SecretManageMode == pki.ManageNone {
		return nil
	}
	for _, needed := range []struct{ property, purpose string }{
		{"secret", "the name of the secret to write"},
		{"dns-name", "the name to certify, by which others reach this cluster"},
	} {
		if !p.isGiven(needed.property) && p.config.Mode != mesh.WireGuard {
			return p.errorAt("secret-manage-mode", "secret-manage-mode %s needs %s: %s",
				p.config.SecretManageMode, needed.property, needed.purpose)
		}
	}
	return nil
}

// checkSystemCAs refuses the CAs of the system where there is another one.
func checkSystemCAs(p *parser) error {
	const prop = "trust-system-cas"
	switch {
	case !p.config.SystemCAs:
	case !hasCertificate(p):
		return p.errorAt(prop, prop+" without certificate: there is nothing to trust; "+
			"add secret, or certfile and keyfile, or remove it")
	case p.isGiven("cacertfile"):
		return p.errorAt(prop, prop+" together with cacertfile %s: peers have certificates of public CAs, or of that one; "+
			"remove the other", p.config.CAFile)
	case p.config.SecretManageMode == pki.ManageSelf:
		return p.errorAt(prop, prop+" with secret-manage-mode self: the broker's own CA is no public one; remove it")
	case p.config.AutoConnect:
		return p.errorAt(prop, prop+" with auto-connect: every owner of a public certificate could join; remove one of them")
	}
	return nil
}

// checkModeNone refuses the properties of connections in mode none.
func checkModeNone(p *parser) error {
	if p.config.Mode.CarriesTraffic() {
		return nil
	}
	return p.refuseAny(
		"in mode none: there are no connections to other clusters; use mode bridge or wireguard, or remove it",
		"auto-connect", "local-ports", "dns-advertisement", "service-account", "mtu")
}

func checkAutoConnect(p *parser) error {
	if p.config.AutoConnect && !hasCertificate(p) {
		return p.errorAt("auto-connect", "auto-connect without certificate: "+
			"unknown clusters are recognized by theirs; add secret, or certfile, keyfile and cacertfile")
	}
	return nil
}

func checkServiceAccount(p *parser) error {
	switch {
	case p.isGiven("service-account") && !hasCertificate(p):
		return p.errorAt("service-account", "service-account without certificate: its token would be readable on the way, "+
			"and sent to anybody; add secret, or certfile, keyfile and cacertfile")
	case p.isGiven("token-lifetime") && !p.isGiven("service-account"):
		return p.errorAt("token-lifetime",
			"token-lifetime without service-account: there is no token; add service-account or remove it")
	}
	return nil
}

func checkConfigureDNS(p *parser) error {
	cfg := &p.config
	switch {
	case cfg.ConfigureDNS && cfg.Propagation == mesh.PropagateNone:
		return p.errorAt("coredns-configure", "coredns-configure without dns-propagation: "+
			"there are no names to lead the cluster's DNS to; add dns-propagation or remove it")
	case cfg.ConfigureDNS && !p.isGiven("coredns-service-ip") && !mesh.Nth(cfg.ServiceCIDRs.First(), 11).IsValid():
		return p.errorAt("coredns-configure", "coredns-configure needs coredns-service-ip, or service-cidr whose "+
			"11th address it is: the address of the service by which the cluster's DNS reaches kubelink")
	}
	return nil
}

// checkVXLAN refuses an overlay without what it needs, and settings of one that is not wanted.
func checkVXLAN(p *parser) error {
	cfg := &p.config
	for _, name := range []string{"vxlan-vni", "vxlan-port"} {
		if p.isGiven(name) && !cfg.VXLAN.Wanted {
			return p.errorAt(name, "%s without ipip vxlan: there is no VXLAN; add ipip vxlan or remove it", name)
		}
	}
	switch {
	case cfg.VXLAN.Wanted && !cfg.Mode.CarriesTraffic():
		return p.errorAt("ipip", "ipip vxlan with mode none: this broker carries no packets; remove one of them")
	case cfg.VXLAN.Wanted && len(cfg.NodeCIDRs) == 0:
		return p.errorAt("ipip", "ipip vxlan needs node-cidr: VXLAN packets come from addresses of nodes only")
	}
	return nil
}

// checkLease refuses properties of a Lease together with omit-lease.
func checkLease(p *parser) error {
	if !p.isGiven("omit-lease") {
		return nil
	}
	for _, prop := range []string{"lease-name", "lease-duration", "lease-renew-deadline", "lease-retry-period"} {
		if p.isGiven(prop) {
			return p.errorAt(prop, "%s together with omit-lease: there is no Lease then; remove one of them", prop)
		}
	}
	p.config.LeaseDuration = 0
	return nil
}

// checkConfig reports what the broker itself refuses. The text of its error starts with the property.
func checkConfig(p *parser) error {
	err := p.config.Validate()
	if err == nil {
		return nil
	}
	at, _, _ := strings.Cut(err.Error(), " ")
	if !p.isGiven(at) {
		at = pluginName
	}
	return p.errorAt(at, "%v", err)
}
