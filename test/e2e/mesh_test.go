package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// restoreMesh restores the links between all three clusters.
func restoreMesh(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	must(t, f.Mesh(ctx))
}

// editCorefile changes a broker's Corefile for the time of a test.
func editCorefile(t *testing.T, ctx context.Context, b *fleet.Broker, replace ...string) {
	t.Helper()
	t.Cleanup(func() { restoreMesh(t) })
	text := b.Corefile()
	must(t, b.SetCorefile(strings.NewReplacer(replace...).Replace(text)))
	if b.Corefile() == text {
		t.Fatal("nothing to replace")
	}
	must(t, b.Reload(ctx))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		must(t, b.SetCorefile(text))
		must(t, b.Reload(ctx))
		must(t, b.WaitReady(ctx))
	})
}

// The first cluster is in two meshes: one with the second cluster, and one with the third. Each mesh has its own
// address and domain, and they do not mix.
func TestTwoMeshes(t *testing.T) {
	ctx := startTest(t, 2*time.Minute)
	one, three := brokers[0], brokers[2]
	must(t, one.Remove(ctx, "kubelink3"))
	must(t, brokers[1].Remove(ctx, "kubelink3"))
	for _, name := range []string{"kubelink1", "kubelink2", "kubelink3"} {
		must(t, three.Remove(ctx, name))
	}
	defer restoreMesh(t)
	check := expectNoFailures(t, clients[0], servers[1].service)
	defer check()

	defer joinSecondMesh(t, ctx, one, three)()
	must(t, one.WaitState(ctx, "second--kubelink3", v1alpha1.StateUp))
	must(t, three.WaitState(ctx, "second--kubelink1", v1alpha1.StateUp))
	waitForReply(t, 2*time.Second, clients[0], servers[2].service)
	waitForReply(t, 2*time.Second, clients[2], servers[0].service)

	// The third cluster sees the first cluster's address in the second mesh, and the second cluster sees its address in
	// the default mesh. The node address would hide it, but not for a service of the host itself.
	for _, b := range []*fleet.Broker{brokers[1], three} {
		editCorefile(t, ctx, b, "dns-propagation dns", "dns-propagation dns\nlocal-ports tcp/8123")
	}
	must(t, three.Gateway().ServeHTTPEcho(8123))
	seen, err := clients[0].Get(ctx, "http://10.99.0.3:8123/")
	must(t, err)
	if seen != "10.99.0.1" {
		t.Errorf("in the second mesh the first cluster is %s", seen)
	}
	must(t, brokers[1].Gateway().ServeHTTPEcho(8123))
	seen, err = clients[0].Get(ctx, "http://"+brokers[1].MeshAddress.Addr().String()+":8123/")
	must(t, err)
	if seen != one.MeshAddress.Addr().String() {
		t.Errorf("in the default mesh the first cluster is %s", seen)
	}

	// The server block of the Corefile has the default mesh domain. The second domain needs another block.
	must(t, checkAnswer(ctx, one, serverName(1), servers[1].service))
	editCorefile(t, ctx, one, "kubelink:1053 ", "second.example:1053 {\n kubelink\n}\nkubelink:1053 ")
	within(t, 2*time.Second, "name in the second mesh", func(ctx context.Context) error {
		return checkAnswer(ctx, one, "server.default.svc.kubelink3.second.example.", servers[2].service)
	})
	must(t, checkAnswer(ctx, one, serverName(1), servers[1].service))

	// The second cluster has no path to the third.
	short, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	if _, err := clients[1].Get(short, "http://"+servers[2].service.String()+"/"); err == nil {
		t.Error("the second cluster reaches the third")
	}
}

// joinSecondMesh links the first and the third cluster in a mesh of their own. The returned function undoes it.
func joinSecondMesh(t *testing.T, ctx context.Context, one, three *fleet.Broker) (leave func()) {
	t.Helper()
	var undo []func()
	for _, pair := range [][2]*fleet.Broker{{one, three}, {three, one}} {
		b := pair[0]
		for _, of := range pair { // the LocalLink is the first, so it is removed last
			l := of.LinkTo()
			l.Name, l.Spec.ClusterAddress = "second--"+of.Name, "10.99.0.1/24"
			if of == three {
				l.Spec.ClusterAddress = "10.99.0.3/24"
			}
			if of == b {
				l.Spec.Endpoint, l.Spec.PublicKey = v1alpha1.EndpointLocal, ""
				l.Spec.DNS = &v1alpha1.KubeLinkDNS{BaseDomain: "second.example"}
			}
			must(t, b.Apply(ctx, l))
			undo = append(undo, func() { must(t, b.Remove(ctx, l.Name)) })
		}
	}
	return func() {
		for _, f := range slices.Backward(undo) {
			f()
		}
	}
}

// The first and the third cluster have no link of their own: the second forwards packets between them.
func TestGatewayLink(t *testing.T) {
	ctx := startTest(t, 2*time.Minute)
	one, two, three := brokers[0], brokers[1], brokers[2]
	defer restoreMesh(t)
	for _, pair := range [][2]*fleet.Broker{{one, three}, {three, one}} {
		l := pair[1].LinkTo()
		l.Spec.Endpoint, l.Spec.GatewayLink = "", two.Name
		must(t, pair[0].Apply(ctx, l))
	}
	must(t, one.WaitState(ctx, "kubelink3", v1alpha1.StateUp, "through kubelink2"))
	must(t, three.WaitState(ctx, "kubelink1", v1alpha1.StateUp, "through kubelink2"))
	const forwarded = `coredns_kubelink_link_bytes_total{direction="tx",link="kubelink1"}`
	before, err := two.Metric(ctx, forwarded)
	must(t, err)
	waitForReply(t, 2*time.Second, clients[0], servers[2].service)
	waitForReply(t, 2*time.Second, clients[2], servers[0].service)
	must(t, transfer(ctx, clients[0], servers[2].service, 10<<20, 0))
	_, err = clients[0].Ping(ctx, three.MeshAddress.Addr())
	must(t, err)
	must(t, checkAnswer(ctx, one, serverName(2), servers[2].service))
	within(t, 3*time.Second, "bytes of the gateway", func(ctx context.Context) error {
		after, err := two.Metric(ctx, forwarded)
		if err == nil && after < before+10<<20 {
			err = fmt.Errorf("it forwarded %g", after-before)
		}
		return err
	})
	checkServiceBehindGateway(t, ctx)
	// The list of the link behind the gateway decides on the packets of its cluster alone.
	service := servers[0].service.String()
	setIngress(t, ctx, one, three.Name, "!"+service)
	waitForOutcome(t, "request", false, func(ctx context.Context) error {
		_, err := clients[2].Get(ctx, "http://"+service+"/")
		return err
	})
	waitForReply(t, 2*time.Second, clients[1], servers[0].service)
	setIngress(t, ctx, one, three.Name)
	waitForReply(t, 2*time.Second, clients[2], servers[0].service)
	// The third cluster drops packets through the gateway after it has lost its link to their source.
	must(t, three.Remove(ctx, "kubelink1"))
	within(t, 3*time.Second, "filter of the third cluster", func(ctx context.Context) error {
		if _, err := clients[0].Ping(ctx, three.MeshAddress.Addr()); err == nil {
			return errors.New("still answered")
		}
		v, err := three.Metric(ctx, droppedSeries("kubelink2", "source"))
		if err == nil && v == 0 && !inWireGuard() { // the device itself drops them, and does not count
			err = errors.New("not counted")
		}
		return err
	})
	// The state of a link behind a gateway follows the gateway.
	must(t, one.Remove(ctx, "kubelink2"))
	must(t, one.WaitState(ctx, "kubelink3", v1alpha1.StateStale, "kubelink2", "does not exist"))
}

// checkServiceBehindGateway: what the third cluster offers its gateway does not tell the first one, which names the
// address in egress.
func checkServiceBehindGateway(t *testing.T, ctx context.Context) {
	t.Helper()
	one, three := brokers[0], brokers[2]
	applyMeshServices(t, ctx, three,
		[2]string{"offered", fmt.Sprintf(`"service":"server","meshAddress":"%s"`, offeredAddress)})
	waitForReply(t, 5*time.Second, clients[1], offeredAddress)
	must(t, checkReached(ctx, offeredAddress, false))
	must(t, checkNoName(ctx, one, offeredName(three, "offered")))
	l, err := one.Link(ctx, three.Name)
	must(t, err)
	l.ResourceVersion = ""
	l.Spec.Egress = []v1alpha1.EgressCIDR{v1alpha1.EgressCIDR(offeredAddress.String())}
	must(t, one.Apply(ctx, l))
	waitForReply(t, 5*time.Second, clients[0], offeredAddress)
}

// An authenticated peer without link gets a link, and a service network only where the Corefile allows it. Whatever the
// peer takes so, a user's link gets.
func TestAutoConnect(t *testing.T) {
	ctx := startTest(t, 2*time.Minute)
	one, three := brokers[0], brokers[2]
	check := expectNoFailures(t, clients[0], servers[1].service)
	defer check()
	must(t, one.Remove(ctx, "kubelink3"))
	editCorefile(t, ctx, one, "dns-propagation dns", "dns-propagation dns\nauto-connect")
	const name = "192-168-0-13"
	defer func() { // without a link, the peer would get another one
		must(t, one.Apply(ctx, three.LinkTo()))
		must(t, one.Remove(ctx, name))
	}()
	within(t, 10*time.Second, "link to be made", func(ctx context.Context) error {
		_, err := one.Link(ctx, name)
		return err
	})
	must(t, one.WaitState(ctx, name, v1alpha1.StateUp))
	l, err := one.Link(ctx, name)
	must(t, err)
	if l.Spec.Endpoint != three.FQDN+":80" || l.Spec.ClusterAddress != "192.168.0.13/24" || l.Spec.CIDR != "" {
		t.Errorf("%+v", l.Spec)
	}
	network := three.ServiceCIDR.String()
	must(t, one.WaitState(ctx, name, v1alpha1.StateUp, "allow it with auto-connect "+network))
	must(t, one.SetCorefile(strings.Replace(one.Corefile(), "auto-connect", "auto-connect 100.64.32.0/19", 1)))
	must(t, one.Reload(ctx))
	within(t, 10*time.Second, "service network of the link", func(ctx context.Context) error {
		l, err := one.Link(ctx, name)
		if err == nil && l.Spec.CIDR != network {
			err = fmt.Errorf("spec %+v", l.Spec)
		}
		return err
	})
	waitForReply(t, 2*time.Second, clients[0], servers[2].service)
	// What the peer has taken so far, it gives to the link that a user makes.
	must(t, one.Apply(ctx, three.LinkTo()))
	must(t, one.WaitState(ctx, name, v1alpha1.StateInvalid, "older link kubelink3"))
	must(t, one.WaitState(ctx, "kubelink3", v1alpha1.StateUp))
	waitForReply(t, 2*time.Second, clients[0], servers[2].service)
	// A peer without a valid certificate gets no link.
	other, err := testbed.NewCA("somebody else")
	must(t, err)
	if p, err := dialRaw(ctx, three.Gateway().Host, one, other, "evil.example"); err == nil {
		p.Hello(netip.MustParsePrefix("192.168.0.66/24"), netip.Prefix{})
		must(t, p.Ended())
	}
	if _, err := one.Link(ctx, "192-168-0-66"); err == nil {
		t.Error("a stranger got a link")
	}
}

// Endpoints may be IP addresses, which the certificate then names.
func TestEndpointAddress(t *testing.T) {
	ctx := startTest(t, 2*time.Minute)
	one, two := brokers[0], brokers[1]
	defer func() {
		if !inWireGuard() {
			must(t, two.NewCertificate(ctx, f.CA, two.FQDN))
		}
		restoreMesh(t)
	}()
	l := two.LinkTo()
	l.Spec.Endpoint = withPublicPort(two, two.PublicAddress.String())
	must(t, one.Apply(ctx, l))
	if !inWireGuard() {
		must(t, one.WaitState(ctx, two.Name, v1alpha1.StateDown, "certificate", two.PublicAddress.String()))
		must(t, two.NewCertificate(ctx, f.CA, two.FQDN, two.PublicAddress.String()))
	}
	must(t, one.WaitState(ctx, two.Name, v1alpha1.StateUp))
	waitForReply(t, 2*time.Second, clients[0], servers[1].service)
}

// The broker can use a routing table of its own.
func TestRouteTable(t *testing.T) {
	ctx := startTest(t, 2*time.Minute)
	b := brokers[2]
	editCorefile(t, ctx, b, "dns-propagation dns", "dns-propagation dns\nroute-table 177\nrule-priority 30000")
	within(t, 10*time.Second, "routes in table 177", func(ctx context.Context) error {
		n, err := kernelState(ctx, b)
		if err != nil {
			return err
		}
		if !strings.Contains(n, "30000:") || !strings.Contains(n, "100.64.0.0/20 via 192.0.0.8 dev kubelink table 177") ||
			strings.Contains(n, "100.64.0.0/20 via 192.0.0.8 dev kubelink proto") {
			return errors.New(n)
		}
		return nil
	})
	waitForReply(t, 2*time.Second, clients[2], servers[0].service)
	waitForReply(t, 2*time.Second, clients[0], servers[2].service)
	must(t, f.WaitMesh(ctx))
}

// The broker makes its certificate itself. Clusters that share a CA key trust each other.
func TestSecretManagedBySelf(t *testing.T) {
	ctx := startTest(t, 2*time.Minute)
	t.Cleanup(func() { // runs after the Corefiles are back
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		for _, b := range brokers {
			must(t, client.IgnoreNotFound(b.Client.Delete(ctx, tlsSecret())))
			must(t, b.NewCertificate(ctx, f.CA, b.FQDN))
		}
		restoreMesh(t)
	})
	for _, b := range brokers[:2] {
		text, err := b.Manifest("components/self-signed/rbac.yaml")
		must(t, err)
		_, err = b.KubectlInput(ctx, text, "apply", "-f", "-")
		must(t, err)
		must(t, b.Client.Delete(ctx, tlsSecret()))
		s := tlsSecret()
		s.Data = map[string][]byte{"ca.crt": f.CA.PEM, "ca.key": f.CA.KeyPEM}
		must(t, b.Client.Create(ctx, s))
		editCorefile(t, ctx, b, "secret kubelink-tls", "secret kubelink-tls\nsecret-manage-mode self\ndns-name "+b.FQDN)
	}
	for _, b := range brokers[:2] {
		within(t, 5*time.Second, "certificate", func(ctx context.Context) error {
			s := tlsSecret()
			if err := b.Client.Get(ctx, client.ObjectKeyFromObject(s), s); err != nil {
				return err
			}
			if len(s.Data["tls.crt"]) == 0 || len(s.Data["tls.key"]) == 0 {
				return errors.New("not yet")
			}
			return nil
		})
		must(t, b.Process.WaitLog(ctx, "certificate in use"))
	}
	// A secret that loses its CA gets no new one, which no peer would trust.
	lost := tlsSecret()
	must(t, brokers[0].Client.Get(ctx, client.ObjectKeyFromObject(lost), lost))
	kept := lost.DeepCopy().Data
	lost.Data = nil
	must(t, brokers[0].Client.Update(ctx, lost))
	must(t, brokers[0].WaitState(ctx, brokers[0].Name, v1alpha1.StateError, "has no ca.crt and ca.key any more"))
	must(t, brokers[0].WaitState(ctx, "kubelink2", v1alpha1.StateUp))
	lost.Data = kept
	must(t, brokers[0].Client.Update(ctx, lost))
	must(t, brokers[0].WaitState(ctx, brokers[0].Name, v1alpha1.StateUp))
	// Without a secret, the broker makes CA and certificate.
	b := brokers[2]
	text, err := b.Manifest("components/self-signed/rbac.yaml")
	must(t, err)
	_, err = b.KubectlInput(ctx, text, "apply", "-f", "-")
	must(t, err)
	must(t, b.Client.Delete(ctx, tlsSecret()))
	editCorefile(t, ctx, b, "secret kubelink-tls", "secret kubelink-tls\nsecret-manage-mode self\ndns-name "+b.FQDN)
	within(t, 5*time.Second, "CA and certificate", func(ctx context.Context) error {
		s := tlsSecret()
		if err := b.Client.Get(ctx, client.ObjectKeyFromObject(s), s); err != nil {
			return err
		}
		for _, key := range []string{"tls.crt", "tls.key", "ca.crt", "ca.key"} {
			if len(s.Data[key]) == 0 {
				return fmt.Errorf("%s is missing", key)
			}
		}
		return nil
	})
	// The first two clusters trust each other, but not the third, which has its own CA.
	must(t, brokers[0].WaitState(ctx, "kubelink2", v1alpha1.StateUp))
	must(t, b.Kill(ctx, syscall.SIGKILL))
	must(t, b.Start(ctx))
	must(t, brokers[0].WaitState(ctx, "kubelink3", v1alpha1.StateDown, "certificate"))
	must(t, b.NewCertificate(ctx, f.CA, b.FQDN)) // without ca.key the broker cannot manage the secret, and says so
	must(t, b.WaitState(ctx, b.Name, v1alpha1.StateError, "ca.key", "its key is not"))
}

// The broker asks the certificate service. The test plays that service.
func TestSecretManagedByCertificateServiceOfTheTest(t *testing.T) {
	ctx := startTest(t, 2*time.Minute)
	b := brokers[2]
	text, err := b.Manifest("components/certificate/rbac.yaml")
	must(t, err)
	_, err = b.KubectlInput(ctx, text+certificateCRD, "apply", "-f", "-")
	must(t, err)
	_, err = b.Kubectl(ctx, "wait", "--for=condition=Established", "crd/certificates.cert.gardener.cloud", "--timeout=20s")
	must(t, err)
	must(t, b.Client.Delete(ctx, tlsSecret()))
	editCorefile(t, ctx, b, "secret kubelink-tls", "secret kubelink-tls\nsecret-manage-mode cert\ndns-name "+b.FQDN)
	within(t, 20*time.Second, "request", func(ctx context.Context) error {
		u := &unstructured.Unstructured{}
		u.SetAPIVersion("cert.gardener.cloud/v1alpha1")
		u.SetKind("Certificate")
		if err := b.Client.Get(ctx, client.ObjectKey{Namespace: fleet.Namespace, Name: fleet.Secret}, u); err != nil {
			return err
		}
		if spec := fmt.Sprint(u.Object["spec"]); spec != "map[commonName:"+b.FQDN+" secretName:"+fleet.Secret+"]" {
			return errors.New(spec)
		}
		return nil
	})
	must(t, b.NewCertificate(ctx, f.CA, b.FQDN))
	must(t, f.WaitMesh(ctx))
}

const certificateCRD = `
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: certificates.cert.gardener.cloud}
spec:
  group: cert.gardener.cloud
  scope: Namespaced
  names: {kind: Certificate, plural: certificates, singular: certificate, listKind: CertificateList}
  versions:
    - name: v1alpha1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`

// In mode none, there are only names: no device and no traffic, but the local cluster's names.
func TestModeNone(t *testing.T) {
	ctx := startTest(t, 2*time.Minute)
	b := brokers[2]
	before := []string{"secret kubelink-tls", "mode none", "service kubelink\n", ""}
	if inWireGuard() {
		before = []string{"mode wireguard", "mode none", "secret kubelink-tls", "", "secret-manage-mode self", "",
			"service kubelink\n", ""}
	}
	editCorefile(t, ctx, b, before...)
	must(t, b.WaitState(ctx, "kubelink1", v1alpha1.StateIdle, "mode none"))
	within(t, 2*time.Second, "network to go", func(ctx context.Context) error {
		n, err := kernelState(ctx, b)
		if err == nil && strings.Contains(n, "192.168.0.") {
			err = errors.New(n)
		}
		return err
	})
	must(t, checkAnswer(ctx, b, serverName(2), servers[2].service))
}

func tlsSecret() *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: fleet.Namespace, Name: fleet.Secret}}
}
