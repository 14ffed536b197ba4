package wireguard

// What has to be told to a device so that it becomes what it shall be: the differences, and nothing about peers without
// any. It is pure.

import (
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// target is what a device shall be.
type target struct {
	key       wgtypes.Key   // private, as devices print it; zero: there is none, and no peer either
	port      int           // of UDP; 0: any
	keepalive time.Duration // whole seconds; 0: none
	peers     []targetPeer  // each key once
}

// targetPeer is what a peer of a device shall be.
type targetPeer struct {
	key       wgtypes.Key
	preshared wgtypes.Key    // zero: none
	networks  []netip.Prefix // allowed IPs; aside: none
	endpoint  netip.AddrPort // to tell the device now; zero: it keeps what it has
	greet     bool           // the device shall start a handshake, or send an empty packet if there is a session
	renew     bool           // the device shall forget the session, and start a handshake
	aside     bool           // the device shall have no session, and only answer to handshakes
}

// probeKeepalive is set for a moment to have a device send something to a peer without keepalive.
const probeKeepalive = 25 * time.Second

// nobody is a public key that no private key is known for. A peer with it takes allowed IPs away from other peers, and
// is removed with them: neither the kernel before Linux 6.16 nor wgctrl can take one away from a peer, but by setting
// all of its allowed IPs anew, and packets that come meanwhile would be lost.
var nobody = wgtypes.Key([]byte("kubelink: this peer is removed. "))

// plan returns what to tell a device, in order; none if nothing differs. No peer is in one of them twice: wgctrl may
// cut them. The first adds before the second removes: to add an allowed IP to a peer takes it away from the other
// one.
func (t *target) plan(is *wgtypes.Device) []wgtypes.Config {
	c := &comparison{target: t, found: map[wgtypes.Key]*wgtypes.Peer{}, owners: map[netip.Prefix]wgtypes.Key{},
		wanted: map[netip.Prefix]wgtypes.Key{}}
	for i := range is.Peers {
		p := &is.Peers[i]
		c.found[p.PublicKey] = p
		for _, n := range p.AllowedIPs {
			c.owners[toPrefix(n)] = p.PublicKey
		}
	}
	if t.key != (wgtypes.Key{}) {
		c.compareDevice(is)
		for i := range t.peers {
			c.comparePeer(&t.peers[i])
		}
		c.takeNetworks(is)
	}
	for i := range is.Peers {
		if p := &is.Peers[i]; c.found[p.PublicKey] != nil {
			c.second.Peers = append(c.second.Peers, wgtypes.PeerConfig{PublicKey: p.PublicKey, Remove: true})
		}
	}
	return slices.DeleteFunc([]wgtypes.Config{c.first, c.second}, isEmpty)
}

func isEmpty(c wgtypes.Config) bool {
	return c.PrivateKey == nil && c.ListenPort == nil && len(c.Peers) == 0
}

// comparison is a plan that is being made.
type comparison struct {
	*target
	found         map[wgtypes.Key]*wgtypes.Peer // peers of the device that no peer of the target was compared with yet
	owners        map[netip.Prefix]wgtypes.Key  // of allowed IPs, in the device
	wanted        map[netip.Prefix]wgtypes.Key  // of allowed IPs, in the target
	newKey        bool                          // sessions end
	first, second wgtypes.Config
}

func (c *comparison) compareDevice(is *wgtypes.Device) {
	if c.newKey = c.key != is.PrivateKey; c.newKey {
		c.first.PrivateKey = &c.key
	}
	if c.port != 0 && c.port != is.ListenPort {
		c.first.ListenPort = &c.port
	}
}

// comparePeer plans what differs between a peer of the target and that of the device.
func (c *comparison) comparePeer(p *targetPeer) {
	is := c.found[p.key]
	delete(c.found, p.key)
	all, missing := c.claimNetworks(p)
	if is == nil {
		c.first.Peers = append(c.first.Peers, c.newPeer(p, all, p.endpoint))
		return
	}
	if p.aside { // without session, keepalive and allowed IPs, the device sends nothing by itself
		// An endpoint alone may stay: a device that has just answered a handshake has one, and gets a session as soon as the
		// peer sends something in it.
		if !is.LastHandshakeTime.IsZero() || is.PersistentKeepaliveInterval != 0 || len(is.AllowedIPs) > 0 ||
			is.PresharedKey != p.preshared {
			c.replacePeer(p, nil, netip.AddrPort{})
		}
		return
	}
	// With another preshared key, the device would use the new one from the next handshake on. A new peer has it at once,
	// and the state of the link shows whether the other end has it, too. A device that had packets for a peer before its
	// first endpoint has tried to send a handshake, and would not try again for 5 s.
	if late := is.Endpoint == nil && is.LastHandshakeTime.IsZero() && p.endpoint.IsValid(); late || p.renew ||
		is.PresharedKey != p.preshared {
		endpoint := p.endpoint
		if !endpoint.IsValid() {
			endpoint = toAddrPort(is.Endpoint)
		}
		c.replacePeer(p, all, endpoint)
		return
	}
	change := wgtypes.PeerConfig{PublicKey: p.key, UpdateOnly: true, AllowedIPs: missing}
	if p.endpoint.IsValid() && p.endpoint != toAddrPort(is.Endpoint) {
		change.Endpoint = net.UDPAddrFromAddrPort(p.endpoint)
	}
	c.compareKeepalive(p, is, &change)
	if change.Endpoint != nil || change.PersistentKeepaliveInterval != nil || len(missing) > 0 {
		c.first.Peers = append(c.first.Peers, change)
	}
}

// compareKeepalive plans a keepalive that differs, and greetings: a device sends something when its keepalive changes
// from none to some.
func (c *comparison) compareKeepalive(p *targetPeer, is *wgtypes.Peer, change *wgtypes.PeerConfig) {
	canSend := is.Endpoint != nil || change.Endpoint != nil
	switch keepalive := is.PersistentKeepaliveInterval; {
	case !canSend && keepalive != 0:
		change.PersistentKeepaliveInterval = new(time.Duration(0))
	case !canSend:
	case (p.greet || c.newKey) && keepalive != 0:
		change.PersistentKeepaliveInterval = new(time.Duration(0))
		c.second.Peers = append(c.second.Peers, wgtypes.PeerConfig{PublicKey: p.key, UpdateOnly: true,
			PersistentKeepaliveInterval: new(max(c.keepalive, time.Second))})
	case p.greet || c.newKey:
		change.PersistentKeepaliveInterval = new(c.greeting())
	case keepalive != c.keepalive:
		change.PersistentKeepaliveInterval = new(c.keepalive)
	}
}

// replacePeer plans to remove a peer and to add it anew: its session ends.
func (c *comparison) replacePeer(p *targetPeer, networks []net.IPNet, endpoint netip.AddrPort) {
	c.first.Peers = append(c.first.Peers, wgtypes.PeerConfig{PublicKey: p.key, Remove: true})
	c.second.Peers = append(c.second.Peers, c.newPeer(p, networks, endpoint))
}

// claimNetworks returns the networks of a peer, and which of them the device has not at that peer.
func (c *comparison) claimNetworks(p *targetPeer) (all, missing []net.IPNet) {
	all = make([]net.IPNet, 0, len(p.networks))
	for _, n := range p.networks {
		if _, taken := c.wanted[n]; taken {
			continue // mesh refuses that; else the first counts
		}
		c.wanted[n] = p.key
		all = append(all, toIPNet(n))
		if c.owners[n] != p.key {
			missing = append(missing, toIPNet(n))
		}
	}
	return all, missing
}

// newPeer is a peer that the device does not have. It gets its keepalive with its endpoint: the device would try to
// send a handshake at once, and then not again for 5 seconds.
func (c *comparison) newPeer(p *targetPeer, networks []net.IPNet, endpoint netip.AddrPort) wgtypes.PeerConfig {
	added := wgtypes.PeerConfig{PublicKey: p.key, AllowedIPs: networks}
	if p.preshared != (wgtypes.Key{}) {
		added.PresharedKey = &p.preshared
	}
	if endpoint.IsValid() {
		added.Endpoint, added.PersistentKeepaliveInterval = net.UDPAddrFromAddrPort(endpoint), new(c.greeting())
	}
	return added
}

// greeting is the keepalive that has a device send something to a peer that has none. Where there shall be none the
// next plan removes it.
func (c *comparison) greeting() time.Duration {
	if c.keepalive == 0 {
		return probeKeepalive
	}
	return c.keepalive
}

// takeNetworks plans to take allowed IPs away that no peer shall have.
func (c *comparison) takeNetworks(is *wgtypes.Device) {
	var taken []net.IPNet
	for i := range is.Peers {
		if c.found[is.Peers[i].PublicKey] != nil {
			continue // goes, and all it has
		}
		for _, n := range is.Peers[i].AllowedIPs {
			if _, wanted := c.wanted[toPrefix(n)]; !wanted {
				taken = append(taken, n)
			}
		}
	}
	if len(taken) > 0 {
		c.first.Peers = append(c.first.Peers, wgtypes.PeerConfig{PublicKey: nobody, AllowedIPs: taken})
		c.second.Peers = append(c.second.Peers, wgtypes.PeerConfig{PublicKey: nobody, Remove: true})
		delete(c.found, nobody)
	}
}

// clampKey is a private key as devices print it (RFC 7748, section 5).
func clampKey(k mesh.SecretKey) wgtypes.Key {
	if k != (mesh.SecretKey{}) {
		k[0] &= 248
		k[31] = k[31]&127 | 64
	}
	return wgtypes.Key(k)
}

func toIPNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func toPrefix(n net.IPNet) netip.Prefix {
	addr, _ := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), ones)
}

// toAddrPort returns the zero AddrPort for nil.
func toAddrPort(a *net.UDPAddr) netip.AddrPort {
	if a == nil {
		return netip.AddrPort{}
	}
	p := a.AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}
