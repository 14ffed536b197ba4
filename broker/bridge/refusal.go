package bridge

// Refused connections, and the words that users read.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/mandelsoft/kubelink/broker/hello"
)

// countRefusal counts a connection that failed with err, if err is a refusal. A connection that was closed without a
// word is none: a load balancer probes the port so, and pendingConns closes connections so.
func (s *shared) countRefusal(err error) {
	if !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, net.ErrClosed) {
		s.refusals.CountError(err)
	}
}

// isAlert tells whether err is a TLS alert from the peer.
func isAlert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

// shortReason describes err in few words, in hello.MaxReason bytes at most. The same error gives the same words each
// time, without addresses and ephemeral ports: each change of a reason is written to the status of the link.
func shortReason(err error) string { return hello.CutText(describeError(err), hello.MaxReason) }

func describeError(err error) string {
	var (
		r       *hello.RefusalError
		name    *net.DNSError
		errno   syscall.Errno
		op      *net.OpError
		timeout net.Error
	)
	switch {
	case err == nil:
		return "closed"
	case errors.As(err, &r) && !errors.As(err, &op) && !errors.Is(err, io.EOF):
		return r.Error()
	case errors.As(err, &name) && name.IsNotFound:
		return "no such host"
	case errors.As(err, &name):
		return "name look-up failed"
	case errors.As(err, &errno):
		return errno.Error()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "closed by peer"
	case isAlert(err): // a peer tells no more to an end that it does not trust
		errors.As(err, &op)
		return "refused by peer: " + op.Err.Error() + ": check that the peer has a KubeLink whose endpoint host " +
			"is a name in our certificate, and that both ends use the same CA"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded),
		errors.As(err, &timeout) && timeout.Timeout():
		return "timed out"
	case errors.As(err, &op) && op.Err != nil:
		return op.Err.Error()
	}
	return err.Error()
}

const (
	maxNameText  = 64 // bytes of a name, in a text that a user reads, that a peer has chosen,
	maxNameTexts = 10 // and how many names
)

// quoteNames lists the names of a certificate, or as many of them as a user reads.
func quoteNames(names []string) string {
	shown := make([]string, 0, maxNameTexts)
	for _, n := range names[:min(len(names), maxNameTexts)] {
		shown = append(shown, hello.CutText(n, maxNameText))
	}
	text := strings.Join(shown, " ")
	if more := len(names) - len(shown); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return "[" + text + "]"
}
