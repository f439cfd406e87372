// Package record asks Istio's own control plane what it makes of sets of objects, and writes the answers down.
//
// The control plane is Istio's code: its validation, its configuration store, its push context and its builders of
// listeners, clusters and endpoints, run in this process. No API server and no Envoy is needed: what a gateway would
// receive is looked at as it is, and a server name is matched with it as Envoy does.
package record

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
	meshconfig "istio.io/api/mesh/v1alpha1"

	"istio.io/istio/pilot/pkg/config/kube/crd"
	"istio.io/istio/pilot/pkg/model"
	"istio.io/istio/pilot/test/xds"
	"istio.io/istio/pkg/config"
	"istio.io/istio/pkg/config/mesh"
)

// sets is how many the corpus has, each of eight questions; perFile how many of them a file holds.
const (
	sets    = 500
	perFile = 100
)

// TestRecord writes the corpus and Istio's answers. One set is lines: `set SEED NAMESPACE LABELS`, the objects, what
// validation refuses (`refused KIND NAMESPACE/NAME`), and `ask NAME PORT -> ANSWER`.
func TestRecord(t *testing.T) {
	dir := os.Getenv("RECORD_DIR")
	if dir == "" {
		t.Skip("RECORD_DIR names the folder to write to")
	}
	for first := 0; first < sets; first += perFile {
		var out strings.Builder
		for seed := first; seed < first+perFile; seed++ {
			t.Run(fmt.Sprint(seed), func(t *testing.T) { out.WriteString(ask(t, seed, generate(int64(seed)))) })
		}
		path := filepath.Join(dir, fmt.Sprintf("sets-%03d.txt", first))
		if err := os.WriteFile(path, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func ask(t *testing.T, seed int, q set) string {
	var labels []string
	for key, value := range q.labels {
		labels = append(labels, key+"="+value)
	}
	sort.Strings(labels)
	var out strings.Builder
	fmt.Fprintf(&out, "set %d %s %s\n%s\n", seed, q.namespace, strings.Join(labels, ","), strings.Join(q.objects, "\n"))
	var good []config.Config
	for _, text := range q.objects {
		// This is what the webhook does.
		configs, _, err := crd.ParseInputs(text)
		if err != nil {
			var o struct {
				Kind     string
				Metadata struct{ Namespace, Name string }
			}
			if err := json.Unmarshal([]byte(text), &o); err != nil {
				t.Fatal(err)
			}
			t.Logf("%s %s/%s: %v", o.Kind, o.Metadata.Namespace, o.Metadata.Name, err)
			fmt.Fprintf(&out, "refused %s %s/%s\n", o.Kind, o.Metadata.Namespace, o.Metadata.Name)
			continue
		}
		for _, c := range configs {
			c.Domain = "cluster.local"
			good = append(good, c)
		}
	}
	m := mesh.DefaultMeshConfig()
	m.RootNamespace = "istio-system"
	m.EnableAutoMtls = wrapperspb.Bool(false)
	m.DefaultProviders = &meshconfig.MeshConfig_DefaultProviders{}
	s := xds.NewFakeDiscoveryServer(t, xds.FakeOptions{Configs: good, MeshConfig: m})
	proxy := s.SetupProxy(&model.Proxy{
		Type:            model.Router,
		ConfigNamespace: q.namespace,
		Labels:          q.labels,
		Metadata:        &model.NodeMetadata{Namespace: q.namespace, Labels: q.labels},
		IPAddresses:     []string{"127.0.1.1"},
	})
	listeners := s.Listeners(proxy)
	endpoints := map[string][]string{}
	clusters := map[string]bool{}
	for _, c := range s.Clusters(proxy) {
		clusters[c.Name] = true
		if c.LoadAssignment != nil {
			endpoints[c.Name] = addresses(c.LoadAssignment)
		}
	}
	for _, e := range s.Endpoints(proxy) {
		endpoints[e.ClusterName] = addresses(e)
	}
	for _, one := range q.asks {
		name, port, _ := strings.Cut(one, " ")
		fmt.Fprintf(&out, "ask %s -> %s\n", one, decide(t, listeners, clusters, endpoints, name, port))
	}
	return out.String()
}

func addresses(load *endpointv3.ClusterLoadAssignment) []string {
	var all []string
	for _, locality := range load.Endpoints {
		for _, one := range locality.LbEndpoints {
			at := one.GetEndpoint().GetAddress().GetSocketAddress()
			all = append(all, fmt.Sprintf("%s:%d*%d", at.GetAddress(), at.GetPortValue(), one.GetLoadBalancingWeight().GetValue()))
		}
	}
	sort.Strings(all)
	return all
}

// decide takes the filter chain that Envoy would: of the exact name, else of the longest wildcard, else the one without names.
func decide(t *testing.T, listeners []*listenerv3.Listener, clusters map[string]bool, endpoints map[string][]string, name, port string) string {
	for _, l := range listeners {
		if at := l.GetAddress().GetSocketAddress(); fmt.Sprint(at.GetPortValue()) != port || at.GetAddress() != "0.0.0.0" {
			continue
		}
		seen := map[string]bool{}
		var best *listenerv3.FilterChain
		rank := -1
		for _, chain := range l.FilterChains {
			names := chain.GetFilterChainMatch().GetServerNames()
			if len(names) == 0 {
				names = []string{""}
			}
			for _, own := range names {
				own = strings.ToLower(own)
				if seen[own] {
					return "rejected by Envoy"
				}
				seen[own] = true
				r := -1
				switch {
				case own == "":
					r = 0
				case name == "-":
				case own == name:
					r = 1 << 20
				case strings.HasPrefix(own, "*.") && strings.HasSuffix(name, own[1:]):
					r = len(own)
				}
				if r > rank {
					best, rank = chain, r
				}
			}
		}
		if best == nil {
			return "none"
		}
		if best.TransportSocket != nil {
			return "terminated"
		}
		return target(t, best, clusters, endpoints)
	}
	return "none"
}

func target(t *testing.T, chain *listenerv3.FilterChain, clusters map[string]bool, endpoints map[string][]string) string {
	for _, f := range chain.Filters {
		proxy := &tcpv3.TcpProxy{}
		if f.GetTypedConfig() == nil || f.GetTypedConfig().UnmarshalTo(proxy) != nil {
			continue
		}
		one := func(name string) string {
			if !clusters[name] {
				return name + " missing"
			}
			return name + " " + strings.Join(endpoints[name], ",")
		}
		if w := proxy.GetWeightedClusters(); w != nil {
			var all []string
			for _, c := range w.Clusters {
				all = append(all, fmt.Sprintf("%d %s", c.Weight, one(c.Name)))
			}
			return strings.Join(all, "; ")
		}
		return "1 " + one(proxy.GetCluster())
	}
	return "http"
}
