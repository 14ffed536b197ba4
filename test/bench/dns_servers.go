package main

// This file creates the objects behind the names (services, a link, entries), and starts the DNS servers with their
// Corefiles and queries.

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// setUp creates the objects behind the names and starts the servers.
func (p *nameServers) setUp(ctx context.Context) error {
	if !slices.Contains(p.measures, existingNames) && !slices.Contains(p.measures, missingNames) {
		return nil
	}
	if err := p.broker.Kubeconfig(p.kubeconfigPath()); err != nil {
		return err
	}
	addresses, err := p.createServices(ctx)
	if err != nil {
		return err
	}
	if err := p.createLink(ctx); err != nil {
		return err
	}
	if p.hasGlobal() {
		if err := p.createEntries(ctx); err != nil {
			return err
		}
	}
	var hosts bytes.Buffer
	for i, a := range addresses {
		fmt.Fprintf(&hosts, "%s %s\n", a, serviceName(i))
	}
	hostsFile := filepath.Join(p.dir, "hosts")
	if err := os.WriteFile(hostsFile, hosts.Bytes(), 0o644); err != nil {
		return err
	}

	for i, e := range dnsLayout.entrants {
		if e.name == linksServer || !slices.Contains(p.contenders, e.name) {
			continue
		}
		kind := strings.TrimSuffix(e.name, bareSuffix)
		var binary string
		if present, ok := dnsLayout.present[e.name]; ok {
			kind, binary = present, p.before
		} else if binary, err = fleet.Binary(); err != nil {
			return err
		}
		plugins, existing, missing := p.configureServer(kind, hostsFile, addresses)
		s := &server{
			name: e.name, address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(5301+i)),
			asked: map[string]*names{existingNames: &existing, missingNames: &missing}, guess: map[string]float64{},
		}
		if p.profile != "" {
			s.profile = fmt.Sprintf("127.0.0.1:%d", 6301+i)
		}
		if !isBare(e.name) {
			plugins = inChain(plugins, i)
		}
		if err := p.startServer(ctx, s, binary, plugins); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		p.servers = append(p.servers, s)
	}
	if p.hasGlobal() {
		return p.waitForEntries(ctx)
	}
	return nil
}

// hasGlobal says whether a contender serves the global domain.
func (p *nameServers) hasGlobal() bool {
	return slices.ContainsFunc([]string{globalServer, globalBare, globalBefore}, func(name string) bool {
		return slices.Contains(p.contenders, name)
	})
}

// inChain puts plugins into the chain of the Corefile that we ship (deploy/base/corefile.yaml): what that chain costs,
// all servers pay. number makes ports of their own.
func inChain(plugins string, number int) string {
	return fmt.Sprintf(`    acl {
        allow net 127.0.0.0/8 ::1/128
        block
    }
    bufsize 1232
%s    prometheus 127.0.0.1:%d
    ready 127.0.0.1:%d {
        monitor continuously
    }
    health 127.0.0.1:%d
    reload
`, strings.ReplaceAll(plugins, "    reload\n", ""), 7301+number, 8301+number, 9301+number)
}

// configureServer returns the plugins of a server and the names for its queries.
func (p *nameServers) configureServer(
	name, hostsFile string, addresses []netip.Addr,
) (plugins string, existing, missing names) {
	existing = names{count: services, name: serviceName, address: func(i int) netip.Addr { return addresses[i] }}
	missing = names{count: services, name: missingName, rcode: dns.RcodeNameError}
	switch name {
	case whoamiServer: // whoami has no missing names and no addresses
		plugins = "    whoami\n"
		existing.address, missing.rcode = nil, dns.RcodeSuccess
	case hostsServer: // hosts has no SOA record for a denial: it answers SERVFAIL
		plugins = "    hosts " + hostsFile + "\n"
		missing.rcode = dns.RcodeServerFailure
	case legacyServer:
		plugins = legacyPlugins(p.broker.DNSAddress)
	case dnsServer:
		plugins = p.brokerStanza("dns", false)
	case dnsColdServer:
		plugins = p.brokerStanza("dns", false)
		existing = names{name: podName, address: podAddress}
		missing.count = 0
	case kubernetesServer:
		plugins = p.brokerStanza("kubernetes", false)
	case globalServer:
		plugins = p.brokerStanza("dns", true)
		existing = names{count: p.entries, name: entryName, address: entryAddress}
		missing.count, missing.name = p.entries, missingEntry
	}
	return plugins, existing, missing
}

func serviceName(i int) string  { return fmt.Sprintf("s-%04d.%s", i, benchDomain) }
func missingName(i int) string  { return fmt.Sprintf("m-%04d.%s", i, benchDomain) }
func entryName(i int) string    { return fmt.Sprintf("g-%05d.%s", i, globalDomain) }
func missingEntry(i int) string { return fmt.Sprintf("m-%05d.%s", i, globalDomain) }
func entryAddress(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 20, byte(i >> 8), byte(i)})
}

// The cluster DNS has a name for every address that a pod could have, so there is always one more.
func podAddress(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
}
func podName(i int) string {
	return strings.ReplaceAll(podAddress(i).String(), ".", "-") + "." + benchNamespace + ".pod.remote.kubelink."
}

// legacyPlugins are the plugins that the legacy system configured for a cluster: they rewrite names in question and
// answer, ask the cluster's DNS service, cache for 30 s, and deny all other names of the mesh. The log line per query
// is left out. The cache has no effect: CoreDNS rewrites first, and then the names are not in the block's zone any
// more.
func legacyPlugins(upstream netip.Addr) string {
	return fmt.Sprintf(`    rewrite stop {
        name regex (.*)\.remote\.kubelink\. {1}.cluster.local.
        answer name (.*)\.cluster\.local\. {1}.remote.kubelink.
    }
    template ANY ANY kubelink {
        rcode NXDOMAIN
        authority "kubelink. 30 IN SOA ns.dns.kubelink. hostmaster.kubelink. 1 7200 1800 86400 30"
    }
    forward . %s
    cache 30
    loop
    reload
    loadbalance round_robin
`, upstream)
}

// kubeconfigPath is the path of the kubeconfig of the brokers. Their permissions do not matter for the measures.
func (p *nameServers) kubeconfigPath() string { return filepath.Join(p.dir, "kubeconfig") }

// brokerStanza returns the stanza of a broker that serves only names.
func (p *nameServers) brokerStanza(propagation string, global bool) string {
	text := fmt.Sprintf(`    kubelink {
        kubeconfig %s
        namespace %s
        mode none
        cluster-name local
        link-address %s
        served-links %s
        dns-propagation %s
`, p.kubeconfigPath(), fleet.Namespace, p.broker.MeshAddress, remoteLink, propagation)
	// Brokers that do not forward it serve the global domain and write the status of its objects.
	if !global && p.hasGlobal() {
		text += "        meshdns-service-ip " + forwardedTo + "\n"
	}
	return text + "    }\n"
}

// createServices creates the services behind the names and returns their addresses.
func (p *nameServers) createServices(ctx context.Context) ([]netip.Addr, error) {
	addresses := make([]netip.Addr, services)
	return addresses, inParallel(ctx, services, func(ctx context.Context, i int) (err error) {
		o := &corev1.Service{
			// Only the names matter: kube-proxy need not handle these services.
			ObjectMeta: metav1.ObjectMeta{Namespace: benchNamespace, Name: fmt.Sprintf("s-%04d", i),
				Labels: map[string]string{"service.kubernetes.io/service-proxy-name": "none"}},
			Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{testbed.TCPPort(80)}},
		}
		if err := p.broker.Client.Create(ctx, o); err != nil {
			return err
		}
		addresses[i], err = netip.ParseAddr(o.Spec.ClusterIP)
		return err
	})
}

// inParallel calls f for all numbers below n.
func inParallel(ctx context.Context, n int, f func(ctx context.Context, i int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i := range n {
		g.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return f(ctx, i)
		})
	}
	return g.Wait()
}

// createLink creates the link to the cluster, as if it was another one, with access to its API.
func (p *nameServers) createLink(ctx context.Context) error {
	// the account of the test bed's DNS
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "coredns"}}
	token := &authenticationv1.TokenRequest{}
	if err := p.broker.Client.SubResource("token").Create(ctx, account, token); err != nil {
		return err
	}
	ca := &corev1.ConfigMap{}
	key := client.ObjectKey{Namespace: fleet.Namespace, Name: "kube-root-ca.crt"}
	if err := p.broker.Client.Get(ctx, key, ca); err != nil {
		return err
	}
	secret := &corev1.Secret{
		// The secret looks as if the cluster had announced it. If a user had set it, the brokers that use the DNS service
		// would say that it has no effect, and the other brokers would not: they would write the status of the link in
		// turns for ever, beside the measures.
		ObjectMeta: metav1.ObjectMeta{Namespace: fleet.Namespace, Name: mesh.AnnouncedSecret + remoteLink},
		StringData: map[string]string{"token": token.Status.Token, "certificate-authority-data": ca.Data["ca.crt"]},
	}
	if err := p.broker.Client.Create(ctx, secret); err != nil {
		return err
	}
	l := &v1alpha1.KubeLink{ObjectMeta: metav1.ObjectMeta{Name: remoteLink}}
	l.Spec.CIDR = p.broker.ServiceCIDR.String()
	l.Spec.ClusterAddress = netip.PrefixFrom(p.broker.MeshAddress.Addr().Next(), p.broker.MeshAddress.Bits()).String()
	l.Spec.Endpoint = "remote.example"
	l.Spec.APIAccess = &corev1.SecretReference{Namespace: secret.Namespace, Name: secret.Name}
	return p.broker.Apply(ctx, l)
}

// createEntries creates the objects of the global domain.
func (p *nameServers) createEntries(ctx context.Context) error {
	return inParallel(ctx, p.entries, func(ctx context.Context, i int) error {
		return p.broker.Client.Create(ctx, newEntry(fmt.Sprintf("g-%05d", i), entryName(i), entryAddress(i)))
	})
}

// waitForEntries waits until the broker has written the states of all entries. This takes minutes, and measures
// beside it would be wrong.
func (p *nameServers) waitForEntries(ctx context.Context) error {
	return testbed.Until(ctx, "the states of the entries", func(ctx context.Context) error {
		list := &unstructured.UnstructuredList{}
		list.SetGroupVersionKind(newEntry("", "").GroupVersionKind())
		if err := p.broker.Client.List(ctx, list, client.InNamespace(benchNamespace)); err != nil {
			return err
		}
		missing := 0
		for _, o := range list.Items {
			if state, _, _ := unstructured.NestedString(o.Object, "status", "state"); state == "" {
				missing++
			}
		}
		if missing == 0 {
			return nil
		}
		select { // reading thousands of objects takes time from the broker
		case <-ctx.Done():
		case <-time.After(2 * time.Second):
		}
		return fmt.Errorf("%d of %d have none", missing, len(list.Items))
	})
}

// newEntry returns a CoreDNSEntry with addresses for a name.
func newEntry(object, name string, addresses ...netip.Addr) *unstructured.Unstructured {
	o := &unstructured.Unstructured{}
	o.SetAPIVersion("coredns.mandelsoft.org/v1alpha1")
	o.SetKind("CoreDNSEntry")
	o.SetNamespace(benchNamespace)
	o.SetName(object)
	setAddresses(o, addresses...)
	unstructured.SetNestedStringSlice(o.Object, []string{name}, "spec", "dnsNames")
	return o
}

func setAddresses(o *unstructured.Unstructured, addresses ...netip.Addr) {
	var texts []string
	for _, a := range addresses {
		texts = append(texts, a.String())
	}
	unstructured.SetNestedStringSlice(o.Object, texts, "spec", "A")
}

// startServer starts a server and waits for its right answers.
func (p *nameServers) startServer(ctx context.Context, s *server, binary, plugins string) (err error) {
	if s.profile != "" {
		plugins = "    pprof " + s.profile + "\n" + plugins
	}
	text := fmt.Sprintf("kubelink:%d {\n    bind %s\n    errors\n%s}\n", s.address.Port(), s.address.Addr(), plugins)
	file := filepath.Join(p.dir, s.name+".Corefile")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return err
	}
	if s.process, err = p.host.Start(context.WithoutCancel(ctx), s.name, nil, binary, "-conf", file); err != nil {
		return err
	}
	for kind, n := range s.asked {
		if n.count == 0 {
			continue
		}
		n.file = filepath.Join(p.dir, s.name+"-"+kind)
		if err := n.writeQuestions(n.file, 0, n.count); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return testbed.Until(ctx, "its answers", func(ctx context.Context) error {
		select {
		case <-s.process.Done():
			return fmt.Errorf("it has ended: %s", s.process.Log())
		default:
		}
		for _, kind := range []string{existingNames, missingNames} {
			if err := p.checkAnswers(ctx, s, kind); err != nil {
				return err
			}
		}
		return nil
	})
}
