package e2e

// Two clusters offer an address, and the broker of a third one starts anew.

import (
	"context"
	"fmt"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// The cluster that had the address keeps it, though the other one has the smaller cluster address.
func TestContestedAddressStays(t *testing.T) {
	ctx := startTest(t, 2*time.Minute)
	const limit = 10 * time.Second
	b, rival, owner := brokers[0], brokers[1], brokers[2]
	address := netip.MustParseAddr("192.168.0.151")
	spec := [2]string{"contested", fmt.Sprintf(`"service":"server","meshAddress":"%s"`, address)}
	name := offeredName(owner, "contested")
	applyMeshServices(t, ctx, owner, spec)
	within(t, limit, name, func(ctx context.Context) error { return checkAnswer(ctx, b, name, address) })
	<-time.After(6 * time.Second) // offers within five seconds come together
	applyMeshServices(t, ctx, rival, spec)
	check := func() {
		must(t, b.WaitState(ctx, rival.Name, v1alpha1.StateUp, "default/contested at 192.168.0.151: link kubelink3 has it"))
		within(t, limit, name, func(ctx context.Context) error { return checkAnswer(ctx, b, name, address) })
		within(t, limit, "no second name", func(ctx context.Context) error {
			return checkNoName(ctx, b, offeredName(rival, "contested"))
		})
		within(t, limit, "status.contested", func(ctx context.Context) error {
			l, err := b.Link(ctx, owner.Name)
			if err == nil && fmt.Sprint(l.Status.Contested) != "["+address.String()+"]" {
				err = fmt.Errorf("it is %q", l.Status.Contested)
			}
			return err
		})
	}
	check()
	must(t, b.Kill(ctx, syscall.SIGTERM))
	must(t, b.Start(ctx))
	must(t, f.WaitMesh(ctx))
	check()
}
