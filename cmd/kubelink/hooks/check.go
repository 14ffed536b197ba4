package hooks

// Does kubelink work in this cluster, as a pod sees it? Its DNS service answers, and all links are up.

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/miekg/dns"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

const questionTimeout = 2 * time.Second

func runCheck(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("check", flag.ContinueOnError)
	server := flags.String("dns", "", "address of kubelink's DNS service")
	domain := flags.String("domain", "kubelink", "mesh domain")
	limit := flags.Duration("wait", time.Minute, "how long it may take until all is well")
	kubeconfig, err := parseFlags(flags, args)
	if err != nil {
		return err
	}
	c, err := connect(kubeconfig)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, *limit)
	defer cancel()
	last := errors.New("nothing was checked")
	err = wait.PollUntilContextCancel(ctx, time.Second, true, func(ctx context.Context) (bool, error) {
		last = checkDNS(ctx, net.JoinHostPort(*server, "53"), *domain)
		if last == nil {
			last = checkLinks(ctx, c, out)
		}
		return last == nil, nil
	})
	if err != nil {
		return fmt.Errorf("after %s: %w", *limit, last)
	}
	fmt.Fprintf(out, "the DNS service %s answers over UDP and TCP\n", *server)
	return nil
}

// checkDNS asks kubelink's DNS service (host:port) for the mesh domain. Without links, any answer is good.
func checkDNS(ctx context.Context, server, domain string) error {
	question := new(dns.Msg).SetQuestion(dns.Fqdn(domain), dns.TypeSOA)
	for _, network := range []string{"udp", "tcp"} {
		resolver := dns.Client{Net: network, Timeout: questionTimeout}
		answer, _, err := resolver.ExchangeContext(ctx, question, server)
		if err != nil {
			return fmt.Errorf("DNS service %s over %s: %w: does a broker run (kubectl get pods), and do addresses of services "+
				"lead to pods?", server, network, err)
		}
		if answer.Rcode == dns.RcodeRefused {
			return fmt.Errorf("DNS service %s refuses a question of this pod: its address has to be in podCIDR, nodeCIDR or "+
				"dns.allow", server)
		}
	}
	return nil
}

// checkLinks fails if a link is neither up nor idle. It prints the links when all of them are.
func checkLinks(ctx context.Context, c client.Client, out io.Writer) error {
	links := &v1alpha1.KubeLinkList{}
	if err := c.List(ctx, links); err != nil {
		return fmt.Errorf("KubeLinks: %w", err)
	}
	var errs []error
	var report strings.Builder
	for _, l := range links.Items {
		switch l.Status.State {
		case v1alpha1.StateUp, v1alpha1.StateIdle:
			fmt.Fprintf(&report, "KubeLink %s: %s\n", l.Name, l.Status.State)
		case "":
			errs = append(errs, fmt.Errorf("KubeLink %s: no broker has seen it", l.Name))
		default:
			errs = append(errs, fmt.Errorf("KubeLink %s: %s: %s", l.Name, l.Status.State, l.Status.Message))
		}
	}
	if len(errs) == 0 {
		if len(links.Items) == 0 {
			report.WriteString("there are no KubeLinks yet\n")
		}
		fmt.Fprint(out, report.String())
	}
	return errors.Join(errs...)
}
