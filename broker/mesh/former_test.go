package mesh

// Objects as users of the former system have them: they mean what they meant. test/e2e applies them to an API server.

import (
	_ "embed"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

//go:embed testdata/former.yaml
var formerObjects string

// formerLinks are the KubeLinks of testdata/former.yaml, the older ones first.
func formerLinks(t *testing.T) *objs {
	t.Helper()
	o := new(objs)
	for doc := range strings.SplitSeq(formerObjects, "\n---\n") {
		var l v1alpha1.KubeLink
		if err := yaml.UnmarshalStrict([]byte(doc), &l); err != nil {
			if !strings.Contains(doc, "kind: MeshService") {
				t.Fatal(err)
			}
			continue
		}
		o.add(l.Name, "", "", func(to *v1alpha1.KubeLink) { to.Spec = l.Spec })
	}
	return o
}

// In mode wireguard the former broker wanted a key of each link, and of links with one key one endpoint.
func TestFormerObjectsWithKeys(t *testing.T) {
	s := formerLinks(t).build(wireGuard())
	const key = "PnCsvsNSxWV+ZDgmSSjxNTE7vGBLz8Lb3MVQTkI2mVM="
	checkProblem(t, s, "outside20", "")
	checkProblem(t, s, "kubelink2", "Invalid: spec.publicKey is missing: mode wireguard needs the key of kubelink2; "+
		"set it to status.publicKey of the LocalLink there, or to what wg pubkey prints there")
	checkProblem(t, s, "kubelink3", "Invalid: spec.publicKey "+key+" is that of the older link outside20, so both have "+
		"one connection, but spec.endpoint is Inbound here, and 203.0.113.20:51820 there: set the key of kubelink3 here, or "+
		"the same endpoint in both")
	checkEqual(t, "number of peers", len(s.Peers), 1)
	checkEqual(t, "key", s.Peers[0].Key.String(), key)

	alone := formerLinks(t)
	alone.list = append(alone.list[:2], alone.list[3])
	s = alone.build(wireGuard())
	checkProblem(t, s, "kubelink3", "")
	checkEqual(t, "endpoint", s.Peers[0].Host, "")
	checkEqual(t, "preshared key", s.Peers[0].Preshared.Base64(), "y5tH3zqUoG0kKfJqk1o7f0Jc0hS3d2m1n9pQe8rT4wA=")
}

func TestFormerObjects(t *testing.T) {
	s := formerLinks(t).build(cluster1())
	problems := map[string]string{
		"kubelink3": "Invalid: spec.endpoint Inbound works in mode wireguard only: " +
			"in mode bridge give the host name in the peer's certificate",
		"nomask": `Invalid: spec.clusterAddress "192.168.0.14": expected the address of the cluster with the mask of the ` +
			"mesh, such as 192.168.0.12/24", // the API server refuses it
	}
	for _, name := range []string{"kubelink1", "kubelink2", "outside20", "kubelink3", "nomask"} {
		checkProblem(t, s, name, problems[name])
	}
	if len(s.Peers) != 2 {
		t.Fatalf("peers %+v", s.Peers)
	}
	cluster, outside := s.Peers[0], s.Peers[1]
	for _, c := range []struct {
		peer     Peer
		networks string
		reach    string
	}{
		{cluster, "100.64.16.0/20, 192.168.0.12/32",
			"all: 100.64.0.7; ping: 192.168.0.11; nothing: 10.0.0.1 10.1.0.1 100.64.0.1 8.8.8.8"},
		{outside, "10.7.0.0/16, 192.168.0.20/32, 192.168.0.101/32",
			"all: 100.64.0.1; ping: 192.168.0.11; nothing: 10.1.0.1"},
	} {
		checkEqual(t, "networks of "+c.peer.Link, Prefixes(c.peer.Networks).String(), c.networks)
		checkReach(t, c.peer.Ingress, c.reach)
	}
	checkEqual(t, "host", outside.Host, "203.0.113.20")
	checkEqual(t, "port", outside.Port, 51820)
	var routes Prefixes
	for _, r := range s.Routes {
		routes = append(routes, r.Destination)
	}
	checkEqual(t, "routes", routes.String(), "10.7.0.0/16, 100.64.16.0/20, 192.168.0.0/24")
	checkEqual(t, "domain", s.Zones[0].Domain, "kubelink.")
	checkEqual(t, "mesh DNS", s.Meshes[0].DNS, ip("100.64.0.12"))
}
