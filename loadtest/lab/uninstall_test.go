// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"slices"
	"strings"
	"testing"
)

const heldBy = "gateway-exists-finalizer.gateway.networking.k8s.io"

// TestUninstall: while a class is in use, and held by our finalizer, the install is deleted, in the orders that occur to people. Nothing may be stuck on it, nothing of it may be left, and it can be
// installed again: each order begins with that.
func TestUninstall(t *testing.T) {
	b := start(t)
	for _, order := range []struct {
		name   string
		delete func(bench)
	}{
		{"the file at once", deletesFile},
		{"the class before the file", func(b bench) {
			b.kubectl("delete", "gc", "fleetgate", "--wait=false")
			b.shows([]string{heldBy, "deletionTimestamp"}, "get", "gc", "fleetgate", "-o", "yaml")
			deletesFile(b)
		}},
		{"the namespace before all else, the Gateways last", deletesNamespace},
	} {
		if !t.Run(order.name, func(t *testing.T) {
			b := bench{t, b.r}
			inUse(b)
			order.delete(b)
			nothingLeft(b)
		}) {
			out, _ := b.try("get", "pods,sa,gatewayclasses,gateways,crd,ns,clusterroles,clusterrolebindings", "-A", "-o", "custom-columns=K:.kind,N:.metadata.name,D:.metadata.deletionTimestamp,F:.metadata.finalizers")
			t.Fatal(out)
		}
	}
}

// inUse installs, and has a class with a Gateway.
func inUse(b bench) {
	b.Helper()
	installs(b)
	b.kubectl("apply", "-f", examples+"class.yaml", "-f", examples+"gateway.yaml")
	b.wait("gtw/nginx-gateway", "condition=programmed")
	b.wait("gc/fleetgate", "jsonpath={.metadata.finalizers[0]}="+heldBy)
}

func deletesFile(b bench) { b.kubectl("delete", "-f", deploy+"install.yaml", patience) }

// deletesNamespace: the fleet serves on, and what people delete after that waits for nobody.
func deletesNamespace(b bench) {
	b.kubectl("apply", "-f", examples+"app.yaml", "-f", examples+"route.yaml")
	address := b.address("nginx-gateway") + ":8080"
	b.eventually("the welcome page", address, "localhost", isWelcome)
	b.kubectl("delete", "namespace", "fleetgate-system", patience)
	b.eventually("the welcome page without replicas", address, "localhost", isWelcome)
	b.kubectl("delete", "gc", "fleetgate", patience)
	b.kubectl("delete", "gtw", "nginx-gateway", patience)
	b.kubectl("delete", "-f", examples+"app.yaml", "-f", examples+"route.yaml", patience)
	b.kubectl("delete", "--ignore-not-found", "-f", deploy+"install.yaml", patience)
}

// nothingLeft waits for the garbage collector too. Fleets go with their Gateways, by that collector; but it follows a kind only half a minute after its CRD was made, which is later than here: they
// are not looked at.
func nothingLeft(b bench) {
	b.Helper()
	const kinds = "crd,ns,clusterroles,clusterrolebindings,flowschemas,prioritylevelconfigurations"
	b.until("nothing is left of the install", func() bool {
		return !slices.ContainsFunc(strings.Fields(b.kubectl("get", kinds, "-A", "-o", "name")), func(name string) bool {
			return strings.Contains(name, "fleetgate") || strings.Contains(name, "gateway.networking")
		})
	})
}
