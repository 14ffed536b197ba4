// Demo shows the main job of kubelink: it links two real Kubernetes clusters with identical node and pod networks,
// and a pod of one cluster reaches a service of the other by its mesh name.
//
//	demo          stays up until Ctrl-C
//	demo --once   ends by itself; exit code 0 if all worked
//	demo --mode wireguard
//
// As root, the clusters have real nodes, and kubelink is installed from deploy. Otherwise nodes and pods are network
// namespaces only.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mandelsoft/kubelink/broker/mesh"
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
	mode := flag.String("mode", string(mesh.Bridge), "bridge or wireguard")
	flag.Parse()
	if m := mesh.Mode(*mode); !m.CarriesTraffic() {
		fmt.Fprintf(os.Stderr, "--mode %q: use %s or %s\n", *mode, mesh.Bridge, mesh.WireGuard)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	d := &demo{real: testbed.AllowsRealNodes(), mode: mesh.Mode(*mode)}
	err := d.show(ctx)
	if d.Fleet != nil {
		defer d.Close()
	}
	if err != nil {
		if ctx.Err() != nil {
			printStep("interrupted")
			return 130
		}
		fmt.Fprintln(os.Stderr, "\ndemo failed:", err)
		if d.Fleet != nil {
			d.DumpLogs(os.Stderr, 20)
		}
		return 1
	}
	if *once {
		printStep("all worked")
		return 0
	}
	printStep("the clusters stay up until Ctrl-C. From another terminal, as the same user:")
	shell, err := d.Shell()
	if err != nil {
		fmt.Fprintln(os.Stderr, "\ndemo failed:", err)
		return 1
	}
	printIndented("# a shell with kubectl for both clusters\n" + shell)
	printIndented(fmt.Sprintf("# in that shell, for example\nkubectl kubelink status %s %[2]s\nkubectl --context %[2]s get pods -A",
		d.Brokers[0].Name, d.Brokers[1].Name))
	printIndented("# a shell in the network of the client of kubelink1\n" + d.client.Enter("bash"))
	for _, b := range d.Brokers {
		for _, n := range b.Nodes {
			printIndented(fmt.Sprintf("# a shell on %s of %s\n%s", n.Name, b.Name, n.Enter("bash")))
		}
	}
	<-ctx.Done()
	printStep("cleaning up")
	return 0
}
