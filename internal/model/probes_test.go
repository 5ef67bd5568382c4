package model

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// What a gateway asks where there is no HealthPolicy, or why it asks nothing.
func TestDerive(t *testing.T) {
	t.Parallel()
	const (
		web = `
metadata: {namespace: shop, name: web-5d8-x, labels: {pod-template-hash: 5d8}, ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web-5d8, uid: a, controller: true}]}
spec:
  containers:
  - {name: sidecar, ports: [{containerPort: 9000}]}
  - name: web
    ports: [{name: http, containerPort: 8080}, {name: admin, containerPort: 8081}]
    readinessProbe: `
		alone = `
metadata: {namespace: shop, name: web}
spec: {containers: [{name: web, readinessProbe: `
	)
	for name, c := range map[string]struct {
		pods  []string
		http2 bool
		port  int32
		want  string
	}{
		"HTTP": {
			pods: []string{web + `{httpGet: {path: /healthz, port: 8080}, periodSeconds: 10, timeoutSeconds: 1, successThreshold: 1, failureThreshold: 3}`},
			want: "GET /healthz of host web.shop, expecting 200-399, every 10s with timeout 1s; unhealthy after 3, healthy after 1 (Deployment shop/web)",
		},
		"HTTP with a Host header and a named port": {
			pods: []string{web + `{httpGet: {path: healthz, port: http, httpHeaders: [{name: host, value: shop.example.com}, {name: Accept, value: "*/*"}]}, periodSeconds: 60, timeoutSeconds: 5, failureThreshold: 1}`},
			want: "GET /healthz of host shop.example.com, expecting 200-399, every 1m0s with timeout 5s; unhealthy after 1, healthy after 1 (Deployment shop/web)",
		},
		"TCP, in the only container, which declares no port": {
			pods: []string{alone + `{tcpSocket: {port: 8080}}}]}`},
			want: "TCP connection, every 10s with timeout 1s; unhealthy after 3, healthy after 1 (Pod shop/web)",
		},
		"gRPC": {
			pods: []string{alone + `{grpc: {port: 8080, service: greeter}}}]}`}, http2: true,
			want: "gRPC health greeter, every 10s with timeout 1s; unhealthy after 3, healthy after 1 (Pod shop/web)",
		},
		"every second is too often": {
			pods: []string{alone + `{tcpSocket: {port: 8080}, periodSeconds: 1}}]}`},
			want: "TCP connection, every 5s with timeout 1s; unhealthy after 3, healthy after 1 (Pod shop/web)",
		},
		"a sidecar that is an init container": {
			pods: []string{`{metadata: {namespace: shop, name: web}, spec: {containers: [{name: web}], initContainers: [{name: proxy, restartPolicy: Always, ports: [{containerPort: 8080}], readinessProbe: {tcpSocket: {port: 8080}}}]}}`},
			want: "TCP connection, every 10s with timeout 1s; unhealthy after 3, healthy after 1 (Pod shop/web)",
		},
		"several pods that say the same": {
			pods: []string{web + `{tcpSocket: {port: 8080}}`, web + `{tcpSocket: {port: http}}`},
			want: "TCP connection, every 10s with timeout 1s; unhealthy after 3, healthy after 1 (Deployment shop/web)",
		},

		"a rollout": {
			pods: []string{web + `{tcpSocket: {port: 8080}}`, web + `{httpGet: {port: 8080}}`},
			want: "no: there is no HealthPolicy, and the Service's pods differ in their readinessProbes (those of Deployment web and of Deployment web), as they may in the middle of a rollout ( /)",
		},
		"one pod without a probe": {
			pods: []string{web + `{tcpSocket: {port: 8080}}`, alone + `}]}`},
			want: "no: there is no HealthPolicy, and the Service's pods differ in their readinessProbes (those of Deployment web and of Pod web), as they may in the middle of a rollout ( /)",
		},
		"no pod":        {want: "no: there is no HealthPolicy, and no pod whose readinessProbe could be asked for ( /)"},
		"ports differ":  {pods: []string{web + `{}`}, port: -1, want: "no: there is no HealthPolicy, and the Service's pods do not all have the same port ( /)"},
		"no probe":      {pods: []string{alone + `}]}`}, want: "no: there is no HealthPolicy, and container web has no readinessProbe (Pod shop/web)"},
		"a command":     {pods: []string{web + `{exec: {command: [a]}}`}, want: "no: there is no HealthPolicy, and the readinessProbe of container web runs a command, which a gateway cannot (Deployment shop/web)"},
		"another port":  {pods: []string{web + `{httpGet: {port: admin}}`}, want: "no: there is no HealthPolicy, and the readinessProbe asks port 8081, where requests go to port 8080 (Deployment shop/web)"},
		"an unknown":    {pods: []string{web + `{httpGet: {port: metrics}}`}, want: "no: there is no HealthPolicy, and the readinessProbe of container web names a port that the container does not have (Deployment shop/web)"},
		"HTTPS":         {pods: []string{web + `{httpGet: {port: 8080, scheme: HTTPS}}`}, want: "no: there is no HealthPolicy, and the readinessProbe of container web asks by HTTPS, and requests go without TLS (Deployment shop/web)"},
		"another host":  {pods: []string{web + `{tcpSocket: {port: 8080, host: db}}`}, want: "no: there is no HealthPolicy, and the readinessProbe of container web asks another host, db (Deployment shop/web)"},
		"a secret":      {pods: []string{web + `{httpGet: {port: 8080, httpHeaders: [{name: Authorization, value: secret}]}}`}, want: "no: there is no HealthPolicy, and the readinessProbe of container web sends the header Authorization, which is not taken over (Deployment shop/web)"},
		"an odd path":   {pods: []string{web + `{httpGet: {port: 8080, path: "/a b"}}`}, want: "no: there is no HealthPolicy, and the readinessProbe of container web has a path or a host that cannot be sent (Deployment shop/web)"},
		"whose port?":   {pods: []string{web + `{tcpSocket: {port: 8080}}`}, port: 7000, want: "no: there is no HealthPolicy, and none of the pods' containers declares port 7000 (Deployment shop/web)"},
		"no gRPC there": {pods: []string{alone + `{grpc: {port: 8080}}}]}`}, want: "no: there is no HealthPolicy, and the readinessProbe asks by gRPC, which needs appProtocol kubernetes.io/h2c on the Service's port (Pod shop/web)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var probes []PodProbes
			for _, text := range c.pods {
				pod := &corev1.Pod{}
				if err := yaml.UnmarshalStrict([]byte(text), pod); err != nil {
					t.Fatalf("%v in %s", err, text)
				}
				probes = append(probes, ProbesOf(pod))
			}
			port := c.port
			switch port {
			case 0:
				port = 8080
			case -1:
				port = 0
			}
			health := Derive(Cluster{Service: Key{"shop", "web"}, HTTP2: c.http2}, port, probes)
			got := "no: " + health.Why
			if health.Check != nil {
				got = health.Check.String()
			}
			if got += " (" + health.Source.String() + ")"; got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}
