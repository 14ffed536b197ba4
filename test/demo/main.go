// Demo shows the main job of kubelink: it links two real Kubernetes clusters with identical node and pod networks,
// and a pod of one cluster reaches a service of the other by its mesh name.
//
//	demo          stays up until Ctrl-C
//	demo --once   ends by itself; exit code 0 if all worked
package main

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

func main() { os.Exit(testbed.Main(runDemo)) }

var (
	start = time.Now()
	out   sync.Mutex
)

func printStep(format string, args ...any) {
	out.Lock()
	defer out.Unlock()
	fmt.Printf("%5.1fs  %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
}

func printIndented(text string) {
	out.Lock()
	defer out.Unlock()
	for line := range strings.Lines(strings.TrimRight(text, "\n") + "\n") {
		fmt.Print("        ", line)
	}
}

func runDemo() int {
	once := flag.Bool("once", false, "end after the show")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	f, client, err := showMesh(ctx)
	if f != nil {
		defer f.Close()
	}
	if err != nil {
		if ctx.Err() != nil {
			printStep("interrupted")
			return 130
		}
		fmt.Fprintln(os.Stderr, "\ndemo failed:", err)
		if f != nil {
			f.DumpLogs(os.Stderr, 20)
		}
		return 1
	}
	if *once {
		printStep("all worked")
		return 0
	}
	printStep("the clusters stay up until Ctrl-C. From another terminal, as the same user:")
	for _, b := range f.Brokers {
		printIndented(fmt.Sprintf("# kubectl in %s\n%s get kubelinks -o wide", b.Name, b.KubectlCommand()))
	}
	printIndented("# a shell in the pod client of kubelink1\n" + client.Enter("bash"))
	printIndented("# a shell on the gateway node of kubelink1\n" + client.Node.Enter("bash"))
	<-ctx.Done()
	printStep("cleaning up")
	return 0
}

func showMesh(ctx context.Context) (*fleet.Fleet, *testbed.Pod, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	printStep("booting two Kubernetes clusters with the same node network %s and pod network %s", testbed.NodeCIDR,
		testbed.PodCIDR)
	f, err := fleet.New(ctx, 2, fleet.Options{Progress: func(s string) { printStep("%s", s) }})
	if err != nil {
		return nil, nil, err
	}
	one, two := f.Brokers[0], f.Brokers[1]
	for _, b := range f.Brokers {
		printStep("%s: services %s, mesh address %s, endpoint %s", b.Name, b.ServiceCIDR, b.MeshAddress, b.FQDN)
	}

	printStep("a web server in kubelink2, a client in kubelink1")
	server, err := two.Pod(ctx, "echo", testbed.PodOptions{})
	if err != nil {
		return f, nil, err
	}
	if err := server.ServeHTTPEcho(8080); err != nil {
		return f, nil, err
	}
	ip, err := two.Service(ctx, "echo", map[string]string{"app": "echo"},
		[]corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080)}}, testbed.ServiceOptions{})
	if err != nil {
		return f, nil, err
	}
	client, err := one.Pod(ctx, "client", testbed.PodOptions{})
	if err != nil {
		return f, nil, err
	}
	if err := showLinks(ctx, f); err != nil {
		return f, nil, err
	}
	return f, client, showTraffic(ctx, two, client, ip)
}

// showLinks links the clusters and prints the links.
func showLinks(ctx context.Context, f *fleet.Fleet) error {
	printStep("applying the KubeLinks")
	applied := time.Now()
	if err := f.Mesh(ctx); err != nil {
		return err
	}
	printStep("all links are Up after %d ms", time.Since(applied).Milliseconds())
	for _, b := range f.Brokers {
		table, err := b.Kubectl(ctx, "get", "kubelinks")
		if err != nil {
			return err
		}
		printStep("%s$ kubectl get kubelinks", b.Name)
		printIndented(table)
	}
	return nil
}

// showTraffic looks up the server's name, sends a request to it and pings the other cluster. ip is the service's
// address.
func showTraffic(ctx context.Context, two *fleet.Broker, client *testbed.Pod, ip netip.Addr) error {
	name := "echo.default.svc.kubelink2.kubelink."
	var answer *dns.Msg
	if err := testbed.Until(ctx, name, func(ctx context.Context) (err error) {
		if answer, err = client.Query(ctx, name, dns.TypeA); err != nil {
			return err
		}
		if len(answer.Answer) == 0 {
			return fmt.Errorf("%s", dns.RcodeToString[answer.Rcode])
		}
		return nil
	}); err != nil {
		return err
	}
	printStep("client of kubelink1$ dig %s", name)
	printIndented(answer.Answer[0].String())
	if a, ok := answer.Answer[0].(*dns.A); !ok || a.A.String() != ip.String() {
		return fmt.Errorf("%s should be %s", name, ip)
	}

	url := "http://" + strings.TrimSuffix(name, ".") + "/"
	body, err := client.Get(ctx, url)
	if err != nil {
		return err
	}
	printStep("client of kubelink1$ curl %s", url)
	printIndented(fmt.Sprintf("the server in kubelink2 saw client address %s (the client's own is %s)", body,
		client.Address))
	if body == client.Address.String() {
		return fmt.Errorf("the pod's own address crossed the mesh")
	}

	rtt, err := client.Ping(ctx, two.MeshAddress.Addr())
	if err != nil {
		return err
	}
	printStep("client of kubelink1$ ping %s", two.MeshAddress.Addr())
	printIndented(fmt.Sprintf("answered after %.2f ms", float64(rtt.Microseconds())/1000))
	return nil
}
