package deploy

// The Helm chart: it is the same as the kustomizations, and names what is wrong with values.

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/yaml"
)

const chart = "helm/kubelink"

// chartValues are those of values.yaml.
var chartValues = []string{"serviceCIDR=100.64.0.0/20", "podCIDR=100.96.0.0/11", "nodeCIDR=10.250.0.0/16",
	"meshCIDR=192.168.0.0/24", "endpoint=kubelink.kubelink1.example", "image.tag=latest"}

// choices are values of the chart, and the components that do the same. The default is the first one of each row.
var choices = [][]struct {
	values     string
	components string
}{
	{{"", "node-mode"}, {"mode=pod", "pod-mode"}},
	{{"", "router"}, {"overlay=vxlan", "router vxlan"}},
	{{"", ""}, {"certificate.source=self-signed", "self-signed"}, {"certificate.source=gardener", "certificate"},
		{"links=wireguard", "wireguard"}},
	{{"", ""}, {"clusterDNS.configure=true", "coredns-configure"},
		{"clusterDNS.configure=true clusterDNS.restart=true", "coredns-configure coredns-restart"}},
	{{"", ""}, {"dnsPropagation=kubernetes", "kubernetes-dns"}},
	{{"", ""}, {"stateDir=true", "state-dir"}},
	{{"", ""}, {"advertisement.enabled=true", "advertisement"},
		{"advertisement.enabled=true advertisement.tokenSecret=true", "advertisement token-secret"}},
}

// helmMajors are the versions of Helm for which the chart is.
var helmMajors = []string{"v3", newestHelm}

const newestHelm = "v4"

// helmCommand returns the path of a Helm, of which test/controlplane/helm/go.mod has the version.
func helmCommand(t *testing.T, major string) string {
	t.Helper()
	mod, err := os.ReadFile(filepath.Join(root, "test/controlplane/helm/go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	version := regexp.MustCompile(`helm\.sh/helm/` + major + ` (\S+)`).FindSubmatch(mod)
	if version == nil {
		t.Fatal("test/controlplane/helm/go.mod has no version of Helm " + major)
	}
	path, err := filepath.Abs(filepath.Join(root, ".cache", "helm-"+string(version[1]), "helm"))
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		t.Fatalf("no Helm: %v (test/controlplane/build.sh builds it)", err)
	}
	return path
}

// runHelm returns what Helm prints, or else what it complains about.
func runHelm(t *testing.T, major string, args ...string) (string, error) {
	t.Helper()
	command := exec.Command(helmCommand(t, major), args...)
	for _, kind := range []string{"CACHE", "CONFIG", "DATA"} {
		command.Env = append(command.Environ(), fmt.Sprintf("HELM_%s_HOME=%s", kind, t.TempDir()))
	}
	var complaints bytes.Buffer
	command.Stderr = &complaints
	out, err := command.Output()
	if err != nil {
		err = fmt.Errorf("helm %s %q: %w\n%s", major, args, err, &complaints)
	}
	return string(out), err
}

// template renders the chart into the namespace kubelink.
func template(t *testing.T, major string, values ...string) (string, error) {
	t.Helper()
	args := []string{"template", "kubelink", chart, "--namespace", namespace, "--set", strings.Join(chartValues, ",")}
	if len(values) > 0 {
		args = append(args, "--set", strings.Join(values, ","))
	}
	return runHelm(t, major, args...)
}

// content is an object as its fields.
type content = map[string]any

// parseChart returns the objects of a rendered chart by kind and name, without hooks and without Helm's labels, which
// each of them has.
func parseChart(t *testing.T, text string) (objects, hooks map[string]content) {
	t.Helper()
	objects, hooks = map[string]content{}, map[string]content{}
	for _, document := range regexp.MustCompile(`(?m)^---$`).Split(text, -1) {
		o := content{}
		if err := yaml.Unmarshal([]byte(document), &o); err != nil {
			t.Fatalf("%v in\n%s", err, document)
		}
		if len(o) == 0 {
			continue
		}
		meta := o["metadata"].(content)
		annotations, _ := meta["annotations"].(content)
		if annotations["helm.sh/hook"] != nil {
			hooks[nameContent(o)] = o
			continue
		}
		labels, _ := meta["labels"].(content)
		before := len(labels)
		maps.DeleteFunc(labels, func(label string, _ any) bool {
			return strings.HasPrefix(label, "app.kubernetes.io/") || label == "helm.sh/chart"
		})
		if before != len(labels)+5 {
			t.Errorf("%s lacks labels of Helm", nameContent(o))
		}
		if len(labels) == 0 {
			delete(meta, "labels")
		}
		if objects[nameContent(o)] != nil {
			t.Errorf("%s is there twice", nameContent(o))
		}
		objects[nameContent(o)] = o
	}
	return objects, hooks
}

func nameContent(o content) string {
	meta := o["metadata"].(content)
	return fmt.Sprint(o["kind"], " ", meta["namespace"], "/", meta["name"])
}

// combineChoices returns all ways to take one of each of the first rows, and, with the defaults of these, each choice
// of the other rows. The last one has the last choice of each row.
func combineChoices() (all [][2][]string) {
	const together = 3 // rows whose choices change the same objects
	add := func(to [2][]string, row, choice int) [2][]string {
		c := choices[row][choice]
		return [2][]string{slices.Concat(to[0], strings.Fields(c.values)), slices.Concat(to[1], strings.Fields(c.components))}
	}
	all = [][2][]string{{}}
	for row := range together {
		var next [][2][]string
		for _, before := range all {
			for choice := range choices[row] {
				next = append(next, add(before, row, choice))
			}
		}
		all = next
	}
	defaults, last := all[0], all[len(all)-1]
	for row := together; row < len(choices); row++ {
		for choice := range choices[row] {
			all = append(all, add(defaults, row, choice))
		}
		last = add(last, row, len(choices[row])-1)
	}
	return append(all, last)
}

// TestChartIsKustomization renders the chart with its defaults, and with what components do. Its objects are those that
// kustomize makes of the same values, and those of `kubectl apply -k deploy`.
func TestChartIsKustomization(t *testing.T) {
	for _, combination := range combineChoices() {
		values, chosen := combination[0], combination[1]
		fs := kustomizationOf(t, chosen...)
		file, err := fs.ReadFile("/own/values.yaml")
		if err == nil {
			file = bytes.Replace(file, []byte("image: kubelink "), []byte("image: kubelink:latest "), 1)
			err = fs.WriteFile("/own/values.yaml", file)
		}
		if err != nil {
			t.Fatal(err)
		}
		built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(fs, "/own")
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]content{}
		for _, r := range built.Resources() {
			o := content{}
			if err := yaml.Unmarshal([]byte(r.MustYaml()), &o); err != nil {
				t.Fatal(err)
			}
			want[nameContent(o)] = o
		}
		delete(want, valuesObject)
		for _, major := range helmMajors {
			text, err := template(t, major, append(values, "createNamespace=true")...)
			if err != nil {
				t.Fatal(err)
			}
			got, hooks := parseChart(t, text)
			if len(hooks) == 0 {
				t.Errorf("%q: no hooks", values)
			}
			compareObjects(t, fmt.Sprint("Helm ", major, " ", values), got, want)
		}
	}
}

// compareObjects fails the test with the lines that differ.
func compareObjects(t *testing.T, what string, got, want map[string]content) {
	t.Helper()
	if len(want) < len(baseObjects) {
		t.Errorf("%s: %d objects to compare", what, len(want))
	}
	for name := range want {
		if got[name] == nil {
			t.Errorf("%s: the chart lacks %s", what, name)
		}
	}
	for name, o := range got {
		sortMounts(o)
		sortMounts(want[name])
		a, _ := yaml.Marshal(o)
		b, _ := yaml.Marshal(want[name])
		if !bytes.Equal(a, b) {
			t.Errorf("%s: %s: only the chart has %q, only kustomize %q", what, name, onlyIn(a, b), onlyIn(b, a))
		}
	}
}

// onlyIn returns the lines of a text that another one lacks.
func onlyIn(text, other []byte) (lines []string) {
	rest := strings.Split(string(other), "\n")
	for _, line := range strings.Split(string(text), "\n") {
		if i := slices.Index(rest, line); i >= 0 {
			rest = slices.Delete(rest, i, i+1)
		} else {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// sortMounts sorts the lists of a workload whose order means nothing.
func sortMounts(o content) {
	spec, _ := o["spec"].(content)
	template, _ := spec["template"].(content)
	pod, _ := template["spec"].(content)
	containers, _ := pod["containers"].([]any)
	for _, c := range append(slices.Clone(containers), pod) {
		for _, list := range []string{"env", "ports", "volumeMounts", "volumes"} {
			items, _ := c.(content)[list].([]any)
			slices.SortFunc(items, func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
		}
	}
}

// wrongValues are values that go with the defaults, and parts of the message about them.
var wrongValues = map[string][]string{
	"serviceCIDR=null,meshCIDR=null":     {"/serviceCIDR", "/meshCIDR", "got null, want string"},
	"serviceCIDR=100.64.0.0":             {"/serviceCIDR", "'100.64.0.0' does not match"},
	"podCIDR=pods":                       {"/podCIDR", "'pods'"},
	"meshCIDR=17":                        {"/meshCIDR", "want string"},
	"serviceCIDR=100.64.0.0/30":          {`dnsServiceIP: the 11th address of serviceCIDR "100.64.0.0/30"`, "set it"},
	"serviceCIDR=fd00:1::7/112":          {`dnsServiceIP: the 11th address of serviceCIDR "fd00:1::7/112"`, "set it"},
	"meshCIDR=192.168.0.300/24":          {`meshCIDR: "192.168.0.300/24" is no network`},
	"nodeCIDR=10.250/16":                 {`nodeCIDR: "10.250/16" is no network`},
	"podCIDR=100.96.0.0/33":              {`podCIDR: "100.96.0.0/33" is no network`},
	"meshCIDR=100.64.0.0/20":             {"meshCIDR: 100.64.0.0/20 is serviceCIDR, too"},
	"serviceCIDR=100.64.0.9/20":          {`serviceCIDR: "100.64.0.9/20"`, "is no network"},
	"dnsServiceIP=eleven":                {"/dnsServiceIP", "'eleven'"},
	"endpoint=https://kubelink1":         {"/endpoint", "'https://kubelink1'"},
	"modus=pod":                          {"additional properties 'modus' not allowed"},
	"mode=modus":                         {"/mode", "'node', 'pod'"},
	"links=tls":                          {"/links", "'bridge', 'wireguard'"},
	"overlay=ipip":                       {"/overlay", "'none', 'vxlan'"},
	"certificate.source=cert":            {"/certificate/source", "'gardener', 'cert-manager'"},
	"certificate.duration=90d":           {"/certificate/duration", "'90d'"},
	"crds=helm":                          {"/crds", "'broker', 'chart', 'none'"},
	"clusterDNS=true":                    {"/clusterDNS", "got boolean, want object"},
	"clusterDNS.configur=true":           {"/clusterDNS", "'configur' not allowed"},
	"dnsPropagation=none":                {"/dnsPropagation", "'dns', 'kubernetes'"},
	"advertisement.enabled=maybe":        {"/advertisement/enabled", "want boolean"},
	"dns.allow={all}":                    {"/dns/allow/0", "'all'"},
	"properties.mode=wireguard":          {"properties.mode: the chart sets it by the value links"},
	"properties.state-dir=/state":        {"properties.state-dir: the chart sets it by the value stateDir"},
	"properties.secret=tls":              {"properties.secret: the chart sets it"},
	"properties.Streams=4":               {"properties.Streams: it is no name of a property"},
	"properties.streams={4}":             {"/properties/streams", "got array"},
	"dns.allow={10.0.0.0/8,999.1.1.1/8}": {`dns.allow[1]: "999.1.1.1/8" is no network`},
	"dns.allow={::::/1}":                 {`dns.allow[0]: "::::/1" is no network`},
	"podCIDR=1:2:3::4::5/64":             {`podCIDR: "1:2:3::4::5/64" is no network`},
	"service.loadBalancerSourceRanges={10.0.0.0/33}": {
		`service.loadBalancerSourceRanges[0]: "10.0.0.0/33" is no network`},
	`properties.serve-stale="`:      {`properties.serve-stale: "\"": quotes`},
	`properties.serve-stale=# 1h`:   {`properties.serve-stale: "# 1h": quotes, line ends and comments`},
	`properties.mesh-domain=a b`:    {`properties.mesh-domain: "a b": want one name`},
	"files.names\\.properties=text": {"files.names.properties: the chart writes this file"},
	"clusterDNS.configure=true,files.coredns-configure\\.properties=text": {
		"files.coredns-configure.properties: the chart writes this file"},
	"image.repository=a b":                                       {"/image/repository", "'a b'"},
	"priorityClassName=a: b":                                     {"/priorityClassName", "'a: b'"},
	"files.Corefile=text":                                        {"files.Corefile: the chart writes this file", "dns.allow"},
	"image.pullPolicy=Sometimes":                                 {"/image/pullPolicy", "'IfNotPresent'"},
	"image.digest=latest":                                        {"/image/digest", "'latest'"},
	"replicas=two":                                               {"/replicas", "want integer"},
	"replicas=9":                                                 {"/replicas", "got 9, want 5"},
	"goMemoryLimit=900Mi":                                        {"/goMemoryLimit", "'900Mi'"},
	"service.type=Ingress":                                       {"/service/type", "'LoadBalancer', 'NodePort', 'ClusterIP'"},
	"service.port=70000":                                         {"/service/port", "got 70,000, want 65,535"},
	"service.annotations.a=1":                                    {"/service/annotations/a", "want string"},
	"router.args={v}":                                            {"/router/args/0", "'v'"},
	"uninstall.objects=purge":                                    {"/uninstall/objects", "'keep', 'delete'"},
	"overlay=vxlan,router.enabled=false":                         {"overlay: vxlan", "set router.enabled to true"},
	"mode=pod,router.enabled=false":                              {"mode: pod needs the router", "set router.enabled to true"},
	"certificate.source=self-signed":                             {"endpoint: certificate.source self-signed needs", "kubelink1.example"},
	"clusterDNS.restart=true":                                    {"clusterDNS.restart: true is for clusterDNS.configure only"},
	"advertisement.tokenSecret=true":                             {"advertisement.tokenSecret: true is for advertisement.enabled only"},
	"podDisruptionBudget.enabled=true":                           {"podDisruptionBudget.enabled: true with replicas: 1", "set replicas to 2"},
	"podMonitor.enabled=true":                                    {"podMonitor.enabled: true finds no metrics", "set metrics.expose to true"},
	"networkPolicy.enabled=true":                                 {"networkPolicy.enabled: true does nothing in mode: node"},
	"podDisruptionBudget.minAvailable=0":                         {"/podDisruptionBudget/minAvailable", "got 0, want 1"},
	"prometheusRule.enabled=true,prometheusRule.except={NoSuch}": {"prometheusRule.except: NoSuch is no alert"},
	"links=wireguard,certificate.source=gardener": {
		"certificate.source: gardener is for TLS links", "set it to secret"},
	"certificate.source=cert-manager,endpoint=a.example": {"certificate.issuerRef.name: cert-manager needs an issuer"},
	"service.nodePort=70000":                             {"/service/nodePort", "got 70,000, want 65,535"},
	"service.type=ClusterIP,service.nodePort=30080": {
		"service.nodePort: 30080 is for service.type NodePort or LoadBalancer"},
	"service.type=NodePort,service.loadBalancerClass=a": {
		"service.loadBalancerClass: a is for service.type LoadBalancer, not NodePort"},
}

// What is wrong with values has a message for people: it names the value, and what would be right.
func TestChartRefusesValues(t *testing.T) {
	for _, major := range helmMajors {
		t.Run(major, func(t *testing.T) {
			t.Parallel()
			for values, want := range wrongValues {
				_, err := template(t, major, "endpoint=", values)
				if err == nil {
					t.Errorf("%s is taken", values)
					continue
				}
				for _, text := range want {
					if !strings.Contains(err.Error(), text) {
						t.Errorf("%s: no %q in %v", values, text, err)
					}
				}
			}
		})
	}
}

// Without any values, Helm names those that are required.
func TestChartRequiresValues(t *testing.T) {
	for _, major := range helmMajors {
		_, err := runHelm(t, major, "template", "kubelink", chart)
		for _, want := range []string{"missing propert", "serviceCIDR", "podCIDR", "nodeCIDR", "meshCIDR"} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("no %q in %v", want, err)
			}
		}
	}
}

// Helm's linter has nothing to say, with the defaults and with all that the chart can do.
func TestChartLint(t *testing.T) {
	for _, major := range helmMajors {
		for _, values := range []string{"crds=broker", everything} {
			out, err := runHelm(t, major, "lint", "--strict", chart, "--set", strings.Join(chartValues, ","), "--set", values)
			if err != nil || !strings.Contains(out, "1 chart(s) linted, 0 chart(s) failed") {
				t.Errorf("Helm %s, %s: %v\n%s", major, values, err, out)
			}
		}
	}
}

// everything is what the kustomization cannot do.
const everything = "mode=pod,crds=chart,certificate.source=cert-manager,certificate.issuerRef.name=ca,replicas=2," +
	"podDisruptionBudget.enabled=true,podMonitor.enabled=true,podMonitor.interval=30s,podMonitor.labels.release=own," +
	"prometheusRule.enabled=true,prometheusRule.labels.release=own,prometheusRule.except={KubelinkNoStandby}," +
	"networkPolicy.enabled=true,networkPolicy.clusterDNS=true," +
	"networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.a=b," +
	"service.annotations.one=two,service.loadBalancerClass=own,service.externalTrafficPolicy=Cluster," +
	"service.port=443,service.nodePort=30080," +
	"service.loadBalancerSourceRanges={10.0.0.0/8},priorityClassName=own,properties.streams=4," +
	"properties.keep-network=true," +
	"properties.serve-stale=false,files.kubeconfig=text,dns.allow={192.168.9.0/24,fd00::/64}," +
	"resources.limits.memory=2Gi," +
	"topologySpreadConstraints[0].maxSkew=1,topologySpreadConstraints[0].topologyKey=zone," +
	"topologySpreadConstraints[0].whenUnsatisfiable=ScheduleAnyway,podLabels.team=own,podAnnotations.note=own," +
	"image.pullSecrets[0].name=registry,image.pullPolicy=Always,clusterDNS.configure=true,uninstall.objects=delete," +
	"router.args={--kubeconfig.apiserver-override=https://10.250.0.2:6443}," +
	"nodeSelector.zone=a,tolerations[0].operator=Exists"

// arrivals are texts in objects, with everything.
var arrivals = map[string][]string{
	"Service kubelink/kubelink": {"one: two", "loadBalancerClass: own", "externalTrafficPolicy: Cluster", "port: 443",
		"nodePort: 30080", "- 10.0.0.0/8"},
	"ConfigMap kubelink/kubelink": {" streams 4\n", " keep-network\n", " disable-deploy-crds\n",
		"allow net 192.168.9.0/24 fd00::/64\n            block", "kubeconfig: text"},
	"Deployment kubelink/kubelink": {"replicas: 2", "priorityClassName: own", "whenUnsatisfiable: ScheduleAnyway",
		"team: own", "note: own", "name: registry", "imagePullPolicy: Always", "memory: 2Gi", "zone: a", "operator: Exists"},
	"DaemonSet kubelink/kubelink-router":             {"--kubeconfig.apiserver-override=https://10.250.0.2:6443"},
	"Certificate kubelink/kubelink-tls":              {"kubelink.kubelink1.example", "name: ca", "kind: ClusterIssuer"},
	"PodDisruptionBudget kubelink/kubelink":          {"minAvailable: 1"},
	"PrometheusRule kubelink/kubelink":               {"release: own", "alert: KubelinkLinkDown", "{{ $labels.link }}"},
	"PodMonitor kubelink/kubelink":                   {"release: own", "interval: 30s", "port: metrics", "port: http"},
	"NetworkPolicy kubelink/kubelink":                {"port: 8088", "cidr: 100.96.0.0/11", "a: b"},
	"NetworkPolicy kube-system/kubelink-cluster-dns": {"cidr: 100.64.0.11/32", "k8s-app: kube-dns"},
	"Service kubelink/kubelink-dns":                  {"clusterIP: 100.64.0.11"},
}

// What only the chart can do arrives in its objects.
func TestChartValuesArrive(t *testing.T) {
	text, err := template(t, newestHelm, everything)
	if err != nil {
		t.Fatal(err)
	}
	objects, hooks := parseChart(t, text)
	for name, want := range arrivals {
		checkTexts(t, name, objects[name], want)
	}
	for _, crd := range []string{"kubelinks.kubelink", "meshservices.kubelink", "linkgateways.kubelink",
		"hostedzones.coredns", "corednsentries.coredns"} {
		name := "CustomResourceDefinition <nil>/" + crd + ".mandelsoft.org"
		checkTexts(t, name, objects[name], []string{"helm.sh/resource-policy: keep"})
	}
	checkTexts(t, "hook", hooks["ClusterRole <nil>/kubelink-uninstall"], []string{"- kubelinks.kubelink.mandelsoft.org"})
	if rules, _ := yaml.Marshal(objects["PrometheusRule kubelink/kubelink"]); bytes.Contains(rules, []byte("NoStandby")) {
		t.Error("an alert is there that is to be left out")
	}
	if objects["ResourceQuota kubelink/kubelink"] != nil {
		t.Error("there is a quota for another priority")
	}
	text, err = template(t, newestHelm, "metrics.expose=true", "podMonitor.enabled=true",
		"properties.mesh-domain=mesh.example")
	if err != nil {
		t.Fatal(err)
	}
	objects, _ = parseChart(t, text)
	checkTexts(t, "exposed", objects["ConfigMap kubelink/kubelink"],
		[]string{"prometheus {$NODE_IP}:10533\n", "    mesh.example:1053 in-addr.arpa:1053 "})
	deployment, _ := yaml.Marshal(objects["Deployment kubelink/kubelink"])
	if bytes.Count(deployment, []byte("hostIP: ")) != 2 {
		t.Errorf("the port of metrics is not on all addresses:\n%s", deployment)
	}
}

// checkTexts fails the test if the YAML of an object lacks one of the texts.
func checkTexts(t *testing.T, name string, o content, texts []string) {
	t.Helper()
	text, err := yaml.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range texts {
		if !strings.Contains(string(text), want) {
			t.Errorf("%s: no %q in\n%s", name, want, text)
		}
	}
}
