package envoy

import (
	"fmt"
	"io"
	"net/http"
	"testing"

	"meshroute.io/meshroute/internal/model"
)

// A gateway that listens on IPv6 answers there as it does on IPv4.
func TestIPv6(t *testing.T) {
	t.Parallel()
	in := routesTo(t, map[string]model.Route{"*": {Backends: to("web")}}, map[string][]model.Endpoint{"web": {named(t, "web")}})
	in.Gateway.Clusters = []model.Cluster{{Name: "web"}}
	in.Gateway.IPv6 = true
	startEnvoy(t, in)
	for _, address := range []string{"127.0.0.1", "[::1]"} {
		response, err := http.Get(fmt.Sprintf("http://%s:%d", address, in.Gateway.Ports[0].Bind))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil || string(body) != "web" {
			t.Errorf("%s: %q %v", address, body, err)
		}
	}
	probes, err := Bootstrap(BootstrapOptions{
		XDSSocket: "/run/xds.sock", PagesSocket: "/run/pages.sock", AdminSocket: "/run/admin.sock",
		ProbePort: model.ProbePort, IPv6: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	validate(t, probes)
}
