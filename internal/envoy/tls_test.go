package envoy

import (
	"fmt"
	"testing"

	"meshroute.io/meshroute/internal/model"
)

// A Gateway may have 64 listeners, and hostnames 253 characters: Envoy takes the
// expressions that come of that.
func TestManyHostnames(t *testing.T) {
	t.Parallel()
	in := goldenCase{}
	certificate := &model.Certificate{Secret: model.Key{Namespace: "shop", Name: "cert"}, Chain: []byte("chain"), PrivateKey: []byte("key")}
	port := model.Port{Number: 8443, Bind: 8443, HTTPS: true}
	for i := range 64 {
		port.TLS = append(port.TLS, model.TLSListener{
			Hostname:     fmt.Sprintf("%060d.%060d.%060d.%060d.test", i, i, i, i),
			Certificates: []model.Key{certificate.Secret},
		})
	}
	in.Gateway.Ports, in.Gateway.Certificates = []model.Port{port}, []*model.Certificate{certificate}
	validate(t, mustYAML(t, static(t, resourcesOf(in))))
}
