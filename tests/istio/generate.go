package record

import (
	"encoding/json"
	"fmt"
	"math/rand"
	"slices"
	"strings"
)

// set is a handful of objects, who looks at them, and what is asked.
type set struct {
	namespace string
	labels    map[string]string
	// objects are JSON, which is YAML too, one a line.
	objects []string
	// asks are "name port"; the name "-" is a hello without one.
	asks []string
}

type object = map[string]any

// generator makes the same sets for the same seed, whatever the platform.
type generator struct {
	*rand.Rand
	// times are creation times in an order of their own, or all the same.
	times []string
	made  map[string]bool
	// entries are ServiceEntry specs by namespace and host.
	entries map[string]object
	// defined are hosts of ServiceEntry objects with their ports, named are patterns of routes.
	defined []destination
	named   []string
}

type destination struct {
	host  string
	ports []int
}

var (
	hosts = []string{
		"x.a.test", "y.a.test", "u.x.a.test", "v.u.x.a.test", "x.b.test", "y.b.test", "a.test",
		"*.a.test", "*.x.a.test", "*.b.test", "*.test", "*.a.test", "*.u.x.a.test",
	}
	asked = []string{
		"x.a.test", "y.a.test", "u.x.a.test", "v.u.x.a.test", "w.x.a.test", "x.b.test", "y.b.test", "a.test", "z.test",
		"w.v.u.x.a.test", "n.other", "z.y.b.test",
	}
	services   = []string{"db.internal", "pool.internal", "*.wild.internal", "api.partner.test"}
	namespaces = []string{"app", "app", "data", "istio-system"}
)

func (g *generator) of(texts ...string) string { return texts[g.Intn(len(texts))] }

func (g *generator) chance(percent int) bool { return g.Intn(100) < percent }

func (g *generator) some(most int, from []string) []any {
	var all []any
	seen := map[string]bool{}
	for range 1 + g.Intn(most) {
		if one := g.of(from...); !seen[one] {
			seen[one] = true
			all = append(all, one)
		}
	}
	return all
}

// generate makes the set of a seed. Of an even one all objects exist at once, of an odd one they come in an order.
func generate(seed int64) set {
	g := &generator{Rand: rand.New(rand.NewSource(seed)), made: map[string]bool{}, entries: map[string]object{}}
	for i := range 20 {
		second := 0
		if seed%2 == 1 {
			second = i
		}
		g.times = append(g.times, fmt.Sprintf("2024-01-01T00:00:%02dZ", second))
	}
	g.Shuffle(len(g.times), func(a, b int) { g.times[a], g.times[b] = g.times[b], g.times[a] })
	s := set{namespace: g.of("istio-system", "istio-system", "app"), labels: map[string]string{"istio": "ingressgateway", "app": "edge"}}
	var gateways [][2]string
	for range 1 + g.Intn(3) {
		if meta := g.metadata("Gateway", g.of("edge", "front", "mid")); meta != nil {
			gateways = append(gateways, [2]string{meta["namespace"].(string), meta["name"].(string)})
			s.add("networking.istio.io/v1", "Gateway", meta, g.gateway())
		}
	}
	for range 2 + g.Intn(3) {
		if meta := g.metadata("ServiceEntry", g.of("one", "two", "three")); meta != nil {
			s.add("networking.istio.io/v1", "ServiceEntry", meta, g.serviceEntry(meta["namespace"].(string)))
		}
	}
	for range g.Intn(3) {
		if meta := g.metadata("DestinationRule", g.of("ra", "rb")); meta != nil {
			s.add("networking.istio.io/v1", "DestinationRule", meta, g.destinationRule(meta["namespace"].(string)))
		}
	}
	for range 2 + g.Intn(4) {
		if meta := g.metadata("VirtualService", g.of("va", "vb", "vc", "vd")); meta != nil {
			s.add("networking.istio.io/v1", "VirtualService", meta, g.virtualService(meta["namespace"].(string), gateways))
		}
	}
	order := g.Perm(len(asked))
	for _, at := range order {
		g.named = append(g.named, asked[at])
	}
	for _, name := range g.named {
		ask := strings.Replace(name, "*", g.of("n", "x", "u.x"), 1) + " " + g.of("443", "443", "443", "8443")
		if len(s.asks) < 7 && !slices.Contains(s.asks, ask) {
			s.asks = append(s.asks, ask)
		}
	}
	s.asks = append(s.asks, "- 443")
	return s
}

func (s *set) add(version, kind string, meta, spec object) {
	text, err := json.Marshal(object{"apiVersion": version, "kind": kind, "metadata": meta, "spec": spec})
	if err != nil {
		panic(err)
	}
	s.objects = append(s.objects, string(text))
}

// metadata is nil if there is such an object.
func (g *generator) metadata(kind, name string) object {
	namespace := g.of(namespaces...)
	key := kind + namespace + name
	if g.made[key] {
		return nil
	}
	g.made[key] = true
	time := g.times[0]
	g.times = g.times[1:]
	return object{"name": name, "namespace": namespace, "creationTimestamp": time}
}

func (g *generator) gateway() object {
	spec := object{}
	switch g.Intn(6) {
	case 0:
	case 1:
		spec["selector"] = object{"istio": "egressgateway"}
	case 2:
		spec["selector"] = object{"istio": "ingressgateway", "app": "edge"}
	default:
		spec["selector"] = object{"istio": "ingressgateway"}
	}
	var servers []any
	for i := range 1 + g.Intn(3) {
		var named []any
		for _, host := range g.some(3, append([]string{"*", "*", "*.test", "*.test", "*.a.test"}, hosts...)) {
			prefix := g.of("", "", "", "", "./", "*/", "app/")
			if host == "*" && prefix == "*/" {
				prefix = "" // Istio 1.31 panics on "*/*" beside "./name".
			}
			named = append(named, prefix+host.(string))
		}
		port := object{"number": []int{443, 443, 443, 8443}[g.Intn(4)], "name": fmt.Sprintf("p%d", i), "protocol": g.of("TLS", "TLS", "HTTPS")}
		server := object{"port": port, "hosts": named}
		switch {
		case g.chance(8):
			server["tls"] = object{"mode": "SIMPLE", "credentialName": "cert"}
			port["protocol"] = "HTTPS"
		case g.chance(4):
			port["protocol"] = "TCP"
		case g.chance(2):
			port["protocol"] = "HTTP"
		default:
			server["tls"] = object{"mode": "PASSTHROUGH"}
		}
		servers = append(servers, server)
	}
	spec["servers"] = servers
	return spec
}

func (g *generator) exportTo(own string, spec object) {
	if !g.chance(14) {
		return
	}
	names := slices.DeleteFunc([]string{".", "istio-system", "app", "data"}, func(name string) bool { return name == own })
	spec["exportTo"] = g.some(2, names)
}

func (g *generator) serviceEntry(own string) object {
	host := g.of(services...)
	spec := object{"hosts": []any{host}, "location": "MESH_EXTERNAL"}
	var ports []any
	first := g.Intn(3)
	for i := range 1 + g.Intn(2) {
		port := object{"number": []int{443, 8443, 9443}[(first+i)%3], "name": fmt.Sprintf("tls%d", i), "protocol": "TLS"}
		if g.chance(20) {
			port["targetPort"] = 7443
		}
		if g.chance(5) {
			port["protocol"] = "UDP"
		}
		ports = append(ports, port)
	}
	spec["ports"] = ports
	one := destination{host: host}
	for _, port := range ports {
		one.ports = append(one.ports, port.(object)["number"].(int))
	}
	g.defined = append(g.defined, one)
	spec["resolution"] = "STATIC"
	if g.chance(25) && !strings.HasPrefix(host, "*") {
		spec["resolution"] = "DNS"
	}
	if spec["resolution"] == "STATIC" || g.chance(40) {
		var endpoints []any
		for range 1 + g.Intn(3) {
			one := object{"address": fmt.Sprintf("10.%d.%d.%d", g.Intn(9), g.Intn(250), 1+g.Intn(250)), "labels": object{"version": g.of("v1", "v2")}}
			if g.chance(20) {
				one["ports"] = object{"tls0": 6443}
			}
			if g.chance(20) {
				one["weight"] = 1 + g.Intn(9)
			}
			endpoints = append(endpoints, one)
		}
		spec["endpoints"] = endpoints
	}
	g.exportTo(own, spec)
	// Which of two entries of one age, host and namespace is taken is not defined: they differ in endpoints alone.
	twin, ok := g.entries[own+host]
	if !ok {
		g.entries[own+host] = spec
		return spec
	}
	for _, key := range []string{"exportTo", "resolution", "ports"} {
		delete(spec, key)
		if twin[key] != nil {
			spec[key] = twin[key]
		}
	}
	if spec["resolution"] == "STATIC" && spec["endpoints"] == nil {
		spec["endpoints"] = twin["endpoints"]
	}
	return spec
}

func (g *generator) destinationRule(own string) object {
	spec := object{"host": g.of("db.internal", "pool.internal", "db.internal", "*.internal", "api.partner.test")}
	var subsets []any
	for _, name := range g.some(3, []string{"v1", "v2", "all"}) {
		subset := object{"name": name}
		if name != "all" {
			subset["labels"] = object{"version": name}
		}
		subsets = append(subsets, subset)
	}
	spec["subsets"] = subsets
	g.exportTo(own, spec)
	return spec
}

func (g *generator) virtualService(own string, gateways [][2]string) object {
	// Validation refuses hosts that overlap.
	var named []any
	for _, host := range g.some(3, hosts) {
		if !slices.ContainsFunc(named, func(other any) bool { return overlap(host.(string), other.(string)) }) {
			named = append(named, host)
		}
	}
	spec := object{"hosts": named}
	reference := func(gateway [2]string) string {
		namespace, name := gateway[0], gateway[1]
		switch {
		case g.chance(3):
			return namespace + "/missing"
		case namespace == own && g.chance(50):
			return name
		case g.chance(8):
			return name + "." + namespace + ".svc.cluster.local"
		}
		return namespace + "/" + name
	}
	var references []any
	for range 1 + g.Intn(2) {
		if len(gateways) > 0 {
			references = append(references, reference(gateways[g.Intn(len(gateways))]))
		}
	}
	if g.chance(20) {
		references = append(references, "mesh")
	}
	spec["gateways"] = references
	g.exportTo(own, spec)
	var routes []any
	for range 1 + g.Intn(2) {
		var matches []any
		for range 1 + g.Intn(2) {
			var names []any
			for range 1 + g.Intn(2) {
				// Envoy refuses a listener with a name twice in one match.
				if name := g.within(named[g.Intn(len(named))].(string)); !slices.Contains(names, any(name)) {
					names = append(names, name)
					g.named = append(g.named, name)
				}
			}
			match := object{"sniHosts": names}
			if g.chance(25) {
				match["port"] = []int{443, 8443}[g.Intn(2)]
			}
			if g.chance(12) && len(gateways) > 0 {
				match["gateways"] = []any{reference(gateways[g.Intn(len(gateways))])}
			}
			if g.chance(5) {
				match["sourceLabels"] = object{"app": "till"}
			}
			matches = append(matches, match)
		}
		routes = append(routes, object{"match": matches, "route": g.destinations()})
	}
	spec["tls"] = routes
	if g.chance(8) {
		spec["tcp"] = []any{object{"route": g.destinations()}}
	}
	return spec
}

// overlap tells whether two hosts have names in common.
func overlap(a, b string) bool {
	within := func(a, b string) bool {
		suffix, wild := strings.CutPrefix(b, "*")
		return a == b || wild && strings.HasSuffix(a, suffix)
	}
	return within(a, b) || within(b, a)
}

// within is a name or pattern of a host's names; now and then another one, which validation refuses.
func (g *generator) within(host string) string {
	if g.chance(2) {
		return g.of(hosts...)
	}
	suffix, wild := strings.CutPrefix(host, "*")
	if !wild || g.chance(40) {
		return host
	}
	var all []string
	for _, one := range hosts {
		if strings.HasSuffix(one, suffix) {
			all = append(all, one)
		}
	}
	return g.of(append(all, host)...)
}

func (g *generator) destinations() []any {
	var all []any
	count := 1
	if g.chance(20) {
		count = 2
	}
	for range count {
		service := destination{host: g.of("db.internal", "web"), ports: []int{443, 8443}}
		if len(g.defined) > 0 && g.chance(92) {
			service = g.defined[g.Intn(len(g.defined))]
		}
		to := object{"host": service.host}
		if g.chance(70) {
			port := service.ports[g.Intn(len(service.ports))]
			if g.chance(5) {
				port = 9443
			}
			to["port"] = object{"number": port}
		}
		if g.chance(20) {
			to["subset"] = g.of("v1", "v2", "all")
		}
		one := object{"destination": to}
		if count > 1 {
			one["weight"] = []int{75, 25}[len(all)]
			if g.chance(10) {
				one["weight"] = 0
			}
		}
		all = append(all, one)
	}
	return all
}
