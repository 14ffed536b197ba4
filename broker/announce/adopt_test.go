package announce

import (
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/link"
)

// A user's fields are left alone; what we wrote, or nobody, follows the peer.
func TestAdopt(t *testing.T) {
	secret := corev1.SecretReference{Namespace: "kube-system", Name: "kubelink-api-b"}
	own := &v1alpha1.KubeLinkDNS{DNSIP: "100.64.16.10", BaseDomain: "cluster.local"}
	access := &link.APIInfo{Token: "t"}
	const (
		allFields = `{"f:spec":{"f:dns":{".":{},"f:dnsIP":{},"f:baseDomain":{}},"f:apiAccess":{}}}`
		ipField   = `{"f:spec":{"f:dns":{"f:dnsIP":{}}}}`
	)
	for _, c := range []struct {
		name         string
		dns          *v1alpha1.KubeLinkDNS
		api          *corev1.SecretReference
		ours, theirs string // managed fields
		status       string // managed fields of the status, by others
		facts        Facts
		want         map[string]any
		access       bool
	}{
		{name: "nothing announced"},
		{name: "empty link", facts: Facts{dnsIP: "100.64.16.10", baseDomain: "cluster.local", access: access}, access: true,
			want: map[string]any{
				"dns":       map[string]any{"dnsIP": "100.64.16.10", "baseDomain": "cluster.local"},
				"apiAccess": map[string]any{"namespace": "kube-system", "name": "kubelink-api-b"},
			}},
		{name: "already so", dns: own, api: &secret, ours: allFields,
			facts: Facts{dnsIP: "100.64.16.10", baseDomain: "cluster.local", access: access}, access: true},
		{name: "changed", dns: own, api: &secret, ours: allFields,
			facts: Facts{dnsIP: "100.64.16.11", baseDomain: "cluster.local", access: access}, access: true, want: map[string]any{
				"dns":       map[string]any{"dnsIP": "100.64.16.11", "baseDomain": "cluster.local"},
				"apiAccess": map[string]any{"namespace": "kube-system", "name": "kubelink-api-b"},
			}},
		{name: "withdrawn", dns: own, api: &secret, ours: allFields},
		{name: "partly withdrawn, partly changed", dns: own, api: &secret, ours: allFields,
			facts: Facts{baseDomain: "c"}, want: map[string]any{
				"dns":       map[string]any{"dnsIP": "100.64.16.10", "baseDomain": "c"},
				"apiAccess": map[string]any{"namespace": "kube-system", "name": "kubelink-api-b"},
			}},
		{name: "all is the user's", dns: own, api: &corev1.SecretReference{Namespace: "x", Name: "y"}, theirs: allFields,
			facts: Facts{dnsIP: "100.64.16.11", baseDomain: "c", access: access}},
		{name: "one is the user's", dns: &v1alpha1.KubeLinkDNS{DNSIP: "100.64.16.20"}, theirs: ipField,
			facts: Facts{dnsIP: "100.64.16.11", baseDomain: "c"}, want: map[string]any{
				"dns": map[string]any{"baseDomain": "c"},
			}},
		{name: "the user took one over", dns: own, ours: `{"f:spec":{"f:dns":{"f:baseDomain":{}}}}`, theirs: ipField,
			facts: Facts{dnsIP: "100.64.16.11", baseDomain: "c"}, want: map[string]any{
				"dns": map[string]any{"baseDomain": "c"},
			}},
		{name: "the user applied the same", dns: own, ours: allFields, theirs: ipField,
			facts: Facts{dnsIP: "100.64.16.11", baseDomain: "cluster.local"}},
		{name: "the user set it empty", dns: &v1alpha1.KubeLinkDNS{}, theirs: ipField, facts: Facts{dnsIP: "100.64.16.11"}},
		{name: "nobody knows who set it", dns: own, facts: Facts{dnsIP: "100.64.16.11", baseDomain: "c"}},
		{name: "the user has other fields", dns: &v1alpha1.KubeLinkDNS{OmitDNSPropagation: true},
			theirs: `{"f:spec":{"f:dns":{".":{},"f:omitDNSPropagation":{}}}}`,
			facts:  Facts{dnsIP: "100.64.16.11"}, want: map[string]any{
				"dns": map[string]any{"dnsIP": "100.64.16.11"},
			}},
		{name: "no names, no API access", dns: &v1alpha1.KubeLinkDNS{OmitDNSPropagation: true},
			facts: Facts{dnsIP: "100.64.16.11", access: access}, want: map[string]any{
				"dns": map[string]any{"dnsIP": "100.64.16.11"},
			}},
		{name: "a network of its own", facts: Facts{cidr: "100.64.32.0/20"}, ours: `{"f:spec":{"f:cidr":{}}}`,
			want: map[string]any{"cidr": "100.64.32.0/20"}},
		{name: "what it has taken over stays", ours: `{"f:spec":{"f:cidr":{}}}`, facts: Facts{dnsIP: "100.64.16.11"},
			want: map[string]any{"cidr": "100.64.16.0/20", "dns": map[string]any{"dnsIP": "100.64.16.11"}}},
		{name: "a network of the user", facts: Facts{cidr: "100.64.32.0/20"}, theirs: `{"f:spec":{"f:cidr":{}}}`},
		{name: "status does not count", status: ipField,
			facts: Facts{dnsIP: "100.64.16.11"}, want: map[string]any{"dns": map[string]any{"dnsIP": "100.64.16.11"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := testLink()
			l.Spec.DNS, l.Spec.APIAccess = c.dns, c.api
			for _, m := range []struct{ manager, subresource, fields string }{
				{fieldOwner, "", c.ours}, {"kubectl-edit", "", c.theirs}, {"kubelink", "status", c.status},
			} {
				if m.fields != "" {
					l.ManagedFields = append(l.ManagedFields, metav1.ManagedFieldsEntry{
						Manager: m.manager, Subresource: m.subresource, FieldsV1: metav1.NewFieldsV1(m.fields),
					})
				}
			}
			got, access := c.facts.adopt(l, secret)
			if access != c.access || len(got) != len(c.want) || len(got) > 0 && !reflect.DeepEqual(got, c.want) {
				t.Errorf("%v, %v", got, access)
			}
		})
	}
}

func TestSecretName(t *testing.T) {
	if got := secretName("kube-system", "m--b"); got.Name != "kubelink-api-m--b" || got.Namespace != "kube-system" {
		t.Error(got)
	}
	long := strings.Repeat("a", 253)
	got, other := secretName("kube-system", long).Name, secretName("kube-system", long[1:]).Name
	if len(got) > 253 || got == other {
		t.Error(got, other)
	}
}
