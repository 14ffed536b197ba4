package announce

// How a KubeLink takes over what its peer announces. There all the rest of the broker finds it, also after a restart.

import (
	"cmp"
	"reflect"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// fieldOwner owns, for the API server, what this package writes. It tells it from what users write.
const fieldOwner = "kubelink-advertised"

// ownership tells which fields of an object are this package's, and which are of users and other programs.
type ownership struct{ own, foreign *fieldpath.Set }

func readOwnership(o metav1.Object) ownership {
	w := ownership{&fieldpath.Set{}, &fieldpath.Set{}}
	for _, m := range o.GetManagedFields() {
		set := &fieldpath.Set{}
		if m.FieldsV1 == nil || m.Subresource != "" || set.FromJSON(m.FieldsV1.GetRawReader()) != nil {
			continue
		}
		if m.Manager == fieldOwner {
			w.own = w.own.Union(set)
		} else {
			w.foreign = w.foreign.Union(set)
		}
	}
	return w
}

// mayWrite tells whether a field is not a user's: only this package has written it, or it is empty and has no owner.
func (w ownership) mayWrite(empty bool, path ...any) bool {
	p := fieldpath.MakePathOrDie(path...)
	return !w.foreign.Has(p) && (empty || w.own.Has(p))
}

// adopt returns how a KubeLink takes over the facts: fields is the spec to apply, nil if nothing is to be changed;
// access says that the secret with API access is the broker's to keep. What the peer does not announce, or not any
// more, stays as it is.
func (f Facts) adopt(l *v1alpha1.KubeLink, secret corev1.SecretReference) (fields map[string]any, access bool) {
	owners := readOwnership(l)
	spec := map[string]any{}
	dns, changed := f.adoptDNS(l, owners)
	if len(dns) > 0 {
		spec["dns"] = dns
	}
	if is := l.Spec.CIDR; owners.mayWrite(is == "", "spec", "cidr") {
		if want := cmp.Or(f.cidr, is); want != "" {
			spec["cidr"] = want
			changed = changed || want != is
		}
	}
	if f.access != nil && l.Spec.DNS != nil && l.Spec.DNS.OmitDNSPropagation {
		f.access = nil // there are no names to make of it
	}
	if is := l.Spec.APIAccess; owners.mayWrite(is == nil, "spec", "apiAccess") {
		want := is
		if f.access != nil {
			want, access = &secret, true
		}
		if want != nil {
			spec["apiAccess"] = map[string]any{"namespace": want.Namespace, "name": want.Name}
			changed = changed || !reflect.DeepEqual(want, is)
		}
	}
	if !changed {
		return nil, access
	}
	return spec, access
}

// adoptDNS returns spec.dns as adopt does. It has all fields of this package: a field that an apply leaves out is
// removed.
func (f Facts) adoptDNS(l *v1alpha1.KubeLink, owners ownership) (dns map[string]any, changed bool) {
	now := l.Spec.DNS
	if now == nil {
		now = &v1alpha1.KubeLinkDNS{}
	}
	dns = map[string]any{}
	for _, field := range []struct{ name, is, want string }{
		{"dnsIP", now.DNSIP, f.dnsIP},
		{"baseDomain", now.BaseDomain, f.baseDomain},
	} {
		if !owners.mayWrite(field.is == "", "spec", "dns", field.name) {
			continue
		}
		value := field.want
		if value == "" {
			value = field.is
		}
		if value != "" {
			dns[field.name] = value
			changed = changed || value != field.is
		}
	}
	return dns, changed
}
