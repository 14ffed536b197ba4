package diagnosis

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/records"
)

// metricsOf collects from an outcome; Collect alone is no prometheus.Collector.
type metricsOf struct{ *Outcome }

func (metricsOf) Describe(chan<- *prometheus.Desc) {}

func newKubeLink(name, endpoint, address string) v1alpha1.KubeLink {
	return v1alpha1.KubeLink{ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: v1alpha1.KubeLinkSpec{Endpoint: endpoint, ClusterAddress: address}}
}

// Objects count by kind and state, with zeros; a certificate tells its end, and of several CAs the first end counts.
func TestCollectOutcome(t *testing.T) {
	o := &Outcome{
		Links: []v1alpha1.KubeLink{
			newKubeLink("local", v1alpha1.EndpointLocal, "192.168.0.11/24"), newKubeLink("a", "a.example", "192.168.0.12/24"),
			newKubeLink("b", "b.example", "bad"), newKubeLink("foreign", "c.example", "192.168.0.13/24"),
		},
		State: &mesh.State{Links: []mesh.Link{{Name: "a", Cluster: "a", Peer: "a"}}},
		Told: map[string]Told{"local": {State: v1alpha1.StateUp}, "a": {State: v1alpha1.StateDown},
			"b": {State: v1alpha1.StateInvalid}},
		Certificates: []Certificate{{Kind: "certificate", NotAfter: time.Unix(3000, 0)},
			{Kind: "ca", NotAfter: time.Unix(9000, 0)}, {Kind: "ca", NotAfter: time.Unix(5000, 0)}},
		Routers:      &link.RouterReport{Missing: 2},
		MeshServices: []MeshService{{Name: "x", State: "Ok"}, {Name: "y", State: "Ok"}},
		Names: records.Result{Entries: map[types.NamespacedName]records.Report{
			{Name: "a"}: {State: coredns.StateStale}, {Name: "b"}: {State: coredns.StateStale, Foreign: true},
		}},
	}
	want := `# HELP coredns_kubelink_certificate_expiry_timestamp_seconds When the certificate of this cluster expires, ` +
		`or of the CAs that it trusts the first one, in Unix time.
# TYPE coredns_kubelink_certificate_expiry_timestamp_seconds gauge
coredns_kubelink_certificate_expiry_timestamp_seconds{kind="ca"} 5000
coredns_kubelink_certificate_expiry_timestamp_seconds{kind="certificate"} 3000
# HELP coredns_kubelink_link_info Always 1: mesh (empty: the default mesh), cluster and its address in the mesh, ` +
		`and the link that carries it.
# TYPE coredns_kubelink_link_info gauge
coredns_kubelink_link_info{address="192.168.0.12/24",carrier="a",cluster="a",link="a",mesh=""} 1
# HELP coredns_kubelink_nodes_without_router Nodes whose pods have no way to the links, as no kubelink-router is ready ` +
		`there, by reason.
# TYPE coredns_kubelink_nodes_without_router gauge
coredns_kubelink_nodes_without_router{reason="RouterMissing"} 2
coredns_kubelink_nodes_without_router{reason="RouterNotReady"} 0
# HELP coredns_kubelink_objects Number of objects whose state this broker tells by kind and state.
# TYPE coredns_kubelink_objects gauge
`
	counts := map[string]int{"KubeLink/Down": 1, "KubeLink/Invalid": 1, "LocalLink/Up": 1, "MeshService/Ok": 2,
		"CoreDNSEntry/Stale": 1}
	for kind, states := range map[string]string{
		"KubeLink":     "Invalid Stale Error Idle Up Down Deleting",
		"LocalLink":    "Invalid Stale Error Idle Up Down Deleting",
		"MeshService":  "Ok Invalid Stale Unsupported",
		"CoreDNSEntry": "Ok Invalid Stale",
		"HostedZone":   "Ok Invalid Stale",
	} {
		for state := range strings.FieldsSeq(states) {
			want += fmt.Sprintf("coredns_kubelink_objects{kind=%q,state=%q} %d\n", kind, state, counts[kind+"/"+state])
		}
	}
	if err := testutil.CollectAndCompare(metricsOf{o}, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
	if problems, err := testutil.CollectAndLint(metricsOf{o}); err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
	o.Standby = true
	if n := testutil.CollectAndCount(metricsOf{o}, "coredns_kubelink_objects"); n != 0 {
		t.Errorf("a standby tells of %d series of objects", n)
	}
	if n := testutil.CollectAndCount(metricsOf{}); n != 0 {
		t.Errorf("%d series before the first reconciliation", n)
	}
}
