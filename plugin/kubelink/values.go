package kubelink

// The values of properties. Each function checks a value and stores it in a field of the configuration.
// Its error says what is wrong with the value; the parser adds property and value.

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coredns/coredns/plugin"

	"github.com/miekg/dns"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// setObjectName sets the name of an object of most kinds.
func setObjectName(to *string, v string) error {
	if errs := validation.IsDNS1123Subdomain(v); len(errs) > 0 {
		return errors.New("not a name of an object: " + errs[0])
	}
	*to = v
	return nil
}

// setLabel sets the name of a namespace or service.
func setLabel(to *string, v string) error {
	if errs := validation.IsDNS1123Label(v); len(errs) > 0 {
		return errors.New("not a name of a namespace or service: " + errs[0])
	}
	*to = v
	return nil
}

// setDomain sets a fully qualified domain name in lower case.
func setDomain(to *string, v string) error {
	d := plugin.Name(v).Normalize()
	if errs := validation.IsDNS1123Subdomain(strings.TrimSuffix(d, ".")); len(errs) > 0 || dns.CountLabel(d) == 0 {
		return errors.New("not a domain name, such as cluster.local")
	}
	*to = d
	return nil
}

// setNetwork sets a network without host bits.
func setNetwork(to *mesh.Prefixes, v string) error {
	p, err := netip.ParsePrefix(v)
	switch {
	case err != nil:
		return errors.New("not a network, such as 100.64.0.0/20")
	case p.Addr().Is4In6():
		return errors.New("write an IPv4 network in its own form, such as 100.64.0.0/20")
	case p != p.Masked():
		return fmt.Errorf("an address, not a network: did you mean %s?", p.Masked())
	case p.Bits() == 0:
		return errors.New("all addresses there are, not a network, such as 100.64.0.0/20")
	}
	*to = mesh.Prefixes{p}
	return nil
}

// setAddress sets an IP address; an IPv4-mapped one becomes IPv4.
func setAddress(to *netip.Addr, v string) error {
	ip, err := netip.ParseAddr(v)
	if err != nil || ip.Zone() != "" || ip.IsUnspecified() {
		return errors.New("not an IP address, such as 100.64.0.10")
	}
	*to = ip.Unmap()
	return nil
}

func setPort(to *uint16, v string) error {
	n, err := strconv.ParseUint(v, 10, 16)
	if err != nil || n == 0 {
		return errors.New("not a port: a number from 1 to 65535")
	}
	*to = uint16(n)
	return nil
}

func setNumber(to *int, v string, lowest, highest int) error {
	n, err := strconv.Atoi(v)
	if err != nil || n < lowest || n > highest {
		return fmt.Errorf("not a number from %d to %d", lowest, highest)
	}
	*to = n
	return nil
}

// setOff sets a field that is true when the property is off; the values are on and off.
func setOff(to *bool, v string) error {
	var o string
	err := setChoice(&o, v, "on", "off")
	*to = o == "off"
	return err
}

func setDuration(to *time.Duration, v string, lowest, highest time.Duration) error {
	d, err := time.ParseDuration(v)
	if err != nil || d < lowest || d > highest {
		return fmt.Errorf("not a duration from %s to %s, such as 30m", lowest, highest)
	}
	*to = d
	return nil
}

// setChoice sets one of the values.
func setChoice[T ~string](to *T, v string, values ...T) error {
	if !slices.Contains(values, T(v)) {
		var s []string
		for _, v := range values {
			s = append(s, string(v))
		}
		return fmt.Errorf("not one of %s", strings.Join(s, ", "))
	}
	*to = T(v)
	return nil
}

// setLogLevel sets the lowest level of lines that are logged.
func setLogLevel(p *parser, v string) error {
	var level string
	err := setChoice(&level, v, "debug", "info", "warn", "error")
	if err == nil {
		err = p.config.LogLevel.UnmarshalText([]byte(level))
	}
	return err
}
