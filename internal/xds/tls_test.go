package xds

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/elliptic"
	cryptorand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/go-logr/logr/testr"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"

	"meshroute.io/meshroute/internal/certtest"
	"meshroute.io/meshroute/internal/envoy"
	"meshroute.io/meshroute/internal/model"
)

// gateway is a real Envoy with a relay, whose manager comes and goes.
type gatewayPod struct {
	*place
	manager *manager
	dir     string
	ports   []int32
	backend *net.TCPAddr
	relay   *Relay
	stop    []func() // of relay and Envoy
}

func startGateway(t *testing.T, ports int) *gatewayPod {
	t.Helper()
	if os.Getenv("ENVOY_BIN") == "" {
		t.Skip("ENVOY_BIN names no Envoy")
	}
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %s", r.Host, r.Header.Get("X-Forwarded-Proto"), r.URL.Path)
	}))
	t.Cleanup(backend.Close)
	g := &gatewayPod{place: &place{}, dir: t.TempDir(), backend: backend.Listener.Addr().(*net.TCPAddr)}
	var held []net.Listener // so that none is chosen twice
	for range ports {
		free, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, free)
		g.ports = append(g.ports, int32(free.Addr().(*net.TCPAddr).Port))
	}
	for _, listener := range held {
		listener.Close()
	}
	g.manager = g.place.start(t)
	return g
}

func (g *gatewayPod) in(name string) string { return filepath.Join(g.dir, name) }

// begin starts the containers of the pod.
func (g *gatewayPod) begin(t *testing.T) {
	t.Helper()
	g.relay = NewRelay(RelayOptions{
		Node: &corev3.Node{Id: "pod-1"}, Dial: g.dial, OnProgress: g.report(t, &g.relay),
		Store: g.in("store"), SecretStore: g.in("secrets"), Log: testr.New(t),
	})
	socket, err := net.Listen("unix", g.in("xds.sock"))
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(LocalServerOptions()...)
	g.relay.Register(server)
	go server.Serve(socket)
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan struct{})
	go func() { g.relay.Run(ctx); close(ran) }()

	bootstrap, err := envoy.Bootstrap(envoy.BootstrapOptions{
		Gateway: model.Key(gw), XDSSocket: g.in("xds.sock"), PagesSocket: g.in("pages.sock"), AdminSocket: g.in("admin.sock"),
	})
	if err != nil {
		t.Fatal(err)
	}
	os.WriteFile(g.in("envoy.json"), bootstrap, 0o600)
	command := exec.Command(os.Getenv("ENVOY_BIN"), "-c", g.in("envoy.json"), "--service-node", "x", "--use-dynamic-base-id", "--disable-hot-restart", "-l", "warn", "--concurrency", "1")
	log, err := os.OpenFile(g.in("envoy.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	command.Stdout, command.Stderr = log, log
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	g.stop = []func(){
		func() { command.Process.Kill(); command.Wait(); log.Close() },
		func() { cancel(); server.Stop(); <-ran },
	}
	t.Cleanup(g.end)
}

// end kills them.
func (g *gatewayPod) end() {
	for _, stop := range g.stop {
		stop()
	}
	g.stop = nil
}

// host is one TLS listener, with what it serves.
type host struct {
	name         string
	certificates []*model.Certificate
}

func certificate(t testing.TB, name string, pair certtest.Pair) *model.Certificate {
	t.Helper()
	read := model.ReadCertificate(&corev1.Secret{
		Namespace: "shop", Name: name, Type: corev1.SecretTypeTLS,
		Data: map[string][]byte{"tls.crt": pair.Certificate, "tls.key": pair.Key},
	}, nil)
	if read.Problem != "" {
		t.Fatal(read.Problem)
	}
	return read
}

// content has the hosts on the first port, all with routes; on each of the other
// ports it has plain HTTP.
func (g *gatewayPod) content(hosts ...host) Resources {
	made := model.Gateway{Key: model.Key(gw), Clusters: []model.Cluster{{Name: "shop/web/80"}}}
	https := model.Port{Number: g.ports[0], Bind: g.ports[0], HTTPS: true}
	virtualHost := func(name string) model.VirtualHost {
		return model.VirtualHost{Hostname: name, Routes: []model.Route{{
			Name: "of " + name, Match: model.Match{Path: "/"}, Backends: []model.WeightedCluster{{Cluster: "shop/web/80", Weight: 1}},
		}}}
	}
	for _, h := range hosts {
		l := model.TLSListener{Hostname: h.name}
		for _, c := range h.certificates {
			l.Certificates = append(l.Certificates, c.Secret)
			if !slices.Contains(made.Certificates, c) {
				made.Certificates = append(made.Certificates, c)
			}
		}
		https.TLS = append(https.TLS, l)
		https.VirtualHosts = append(https.VirtualHosts, virtualHost(h.name))
	}
	made.Ports = []model.Port{https}
	for _, port := range g.ports[1:] {
		made.Ports = append(made.Ports, model.Port{Number: port, Bind: port, VirtualHosts: []model.VirtualHost{virtualHost("*")}})
	}
	resources := envoy.Translate(made)
	resources[kinds[endpoints].url] = map[string]proto.Message{"shop/web/80": envoy.Endpoints(model.Cluster{Name: "shop/web/80"}, []model.Endpoint{
		{Address: g.backend.IP.String(), Port: int32(g.backend.Port)},
	})}
	return resources
}

// client asks the first port; serverName is what it asks for by SNI.
func (g *gatewayPod) client(config *tls.Config) *http.Client {
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		TLSClientConfig: config, ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			var dialer net.Dialer
			return dialer.DialContext(ctx, network, fmt.Sprintf("127.0.0.1:%d", g.ports[0]))
		},
	}}
}

// get returns the status and body of an answer, and the version of HTTP.
func get(client *http.Client, url, host string) (answer string, version int, err error) {
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return "", 0, err
	}
	request.Host = host
	response, err := client.Do(request)
	if err != nil {
		return "", 0, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return fmt.Sprintf("%d %s", response.StatusCode, body), response.ProtoMajor, err
}

// Which certificate a client gets, by what it asks for and what it can; and which
// requests are served on its connection.
func TestTLS(t *testing.T) {
	t.Parallel()
	g := startGateway(t, 2)
	g.begin(t)
	authority := certtest.NewAuthority(t)
	exactRSA := certificate(t, "exact-rsa", authority.IssueFor(t, certtest.RSA(t, 2048), nil, "a.example.com"))
	exactECDSA := certificate(t, "exact-ecdsa", authority.Issue(t, "a.example.com"))
	wildcard := certificate(t, "wildcard", authority.Issue(t, "*.example.com", "example.com"))
	first, second := certificate(t, "first", authority.Issue(t, "first.example.org")), certificate(t, "second", authority.Issue(t, "second.example.org"))
	fallback := certificate(t, "fallback", authority.Issue(t, "fallback"))
	g.manager.applied(t, g.manager.Set(gw, g.content(
		host{"a.example.com", []*model.Certificate{exactRSA, exactECDSA}},
		host{"*.example.com", []*model.Certificate{wildcard}},
		host{"*.example.org", []*model.Certificate{first, second}},
		host{"bare.example.com", nil},
		host{"*", []*model.Certificate{fallback}},
	)).Sequence)

	handshake := func(config *tls.Config) (*tls.ConnectionState, error) {
		config.InsecureSkipVerify = true // what it gets is looked at here
		conn, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", g.ports[0]), config)
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		state := conn.ConnectionState()
		return &state, nil
	}
	for name, c := range map[string]struct {
		config  *tls.Config
		want    *model.Certificate // nil: no handshake
		alpn    string
		version uint16
	}{
		"exact before wildcard":           {&tls.Config{ServerName: "a.example.com"}, exactECDSA, "", tls.VersionTLS13},
		"in capitals":                     {&tls.Config{ServerName: "B.Example.COM"}, wildcard, "", tls.VersionTLS13},
		"wildcard":                        {&tls.Config{ServerName: "b.example.com"}, wildcard, "", tls.VersionTLS13},
		"wildcard, several labels":        {&tls.Config{ServerName: "c.b.example.com"}, wildcard, "", tls.VersionTLS13},
		"the apex is none of a wildcard":  {&tls.Config{ServerName: "example.com"}, fallback, "", tls.VersionTLS13},
		"of several the one for the name": {&tls.Config{ServerName: "second.example.org"}, second, "", tls.VersionTLS13},
		"any other":                       {&tls.Config{ServerName: "elsewhere"}, fallback, "", tls.VersionTLS13},
		"no name":                         {&tls.Config{}, fallback, "", tls.VersionTLS13},
		"HTTP/2":                          {&tls.Config{ServerName: "a.example.com", NextProtos: []string{"h2", "http/1.1"}}, exactECDSA, "h2", tls.VersionTLS13},
		"HTTP/1.1":                        {&tls.Config{ServerName: "a.example.com", NextProtos: []string{"http/1.1"}}, exactECDSA, "http/1.1", tls.VersionTLS13},
		"TLS 1.2":                         {&tls.Config{ServerName: "a.example.com", MaxVersion: tls.VersionTLS12}, exactECDSA, "", tls.VersionTLS12},
		"TLS 1.1 is refused":              {&tls.Config{ServerName: "a.example.com", MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, nil, "", 0},
		"no forward secrecy is refused":   {&tls.Config{ServerName: "a.example.com", MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}}, nil, "", 0},
		"CBC is refused":                  {&tls.Config{ServerName: "a.example.com", MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}}, nil, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			state, err := handshake(c.config)
			if c.want == nil {
				if err == nil {
					t.Fatalf("%s with %s", tls.VersionName(state.Version), tls.CipherSuiteName(state.CipherSuite))
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			block, _ := pem.Decode(c.want.Chain)
			if got := state.PeerCertificates[0]; string(got.Raw) != string(block.Bytes) {
				t.Errorf("got the certificate for %v, wanted %v", got.DNSNames, c.want.Names)
			}
			if state.NegotiatedProtocol != c.alpn || state.Version != c.version {
				t.Errorf("got %q over %s", state.NegotiatedProtocol, tls.VersionName(state.Version))
			}
		})
	}

	t.Run("who has no ECDSA gets RSA", func(t *testing.T) {
		got, err := certificateForRSA(fmt.Sprintf("127.0.0.1:%d", g.ports[0]), "a.example.com")
		if err != nil {
			t.Fatal(err)
		}
		if block, _ := pem.Decode(exactRSA.Chain); string(got) != string(block.Bytes) {
			t.Errorf("got another certificate (%d bytes)", len(got))
		}
	})

	// The name asked for, the host of the request, and the answer.
	for _, c := range []struct{ sni, host, want string }{
		{"a.example.com", "a.example.com", "200 a.example.com https /"},
		{"a.example.com", "A.example.com:8443", "200 A.example.com:8443 https /"},
		{"a.example.com", "b.example.com", "421"},
		{"a.example.com", "first.example.org", "421"},
		{"a.example.com", "elsewhere", "421"}, // the listener for any host has that
		{"b.example.com", "b.example.com", "200 b.example.com https /"},
		{"b.example.com", "c.b.example.com", "200 c.b.example.com https /"},
		{"b.example.com", "a.example.com", "421"},
		{"b.example.com", "bare.example.com", "421"},
		{"first.example.org", "second.example.org", "200 second.example.org https /"}, // one listener
		{"elsewhere", "anything", "200 anything https /"},
		{"elsewhere", "a.example.com", "421"},
		{"elsewhere", "b.example.com:443", "421"},
		{"elsewhere", "xexample.com", "200 xexample.com https /"},
	} {
		t.Run(c.host+" over "+c.sni, func(t *testing.T) {
			client := g.client(&tls.Config{ServerName: c.sni, InsecureSkipVerify: true})
			defer client.CloseIdleConnections()
			got, version, err := get(client, "https://"+c.sni, c.host)
			if err != nil {
				t.Fatal(err)
			}
			if version != 2 {
				t.Errorf("came by HTTP/%d", version)
			}
			if got != c.want && !(c.want == "421" && strings.HasPrefix(got, "421 ")) {
				t.Errorf("got %q, wanted %q", got, c.want)
			}
		})
	}

	t.Run("keys are not shown", func(t *testing.T) {
		admin := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var dialer net.Dialer
			return dialer.DialContext(ctx, "unix", g.in("admin.sock"))
		}}}
		for _, page := range []string{"/config_dump?include_eds", "/certs", "/init_dump"} {
			text, _, err := get(admin, "http://envoy"+page, "")
			if err != nil {
				t.Fatal(err)
			}
			if page != "/init_dump" && !strings.Contains(text, "CERTIFICATE") && !strings.Contains(text, "example.com") {
				t.Errorf("%s does not tell of certificates", page)
			}
			for _, secret := range []string{"PRIVATE KEY", "UFJJVkFURSBLRV", string(exactRSA.PrivateKey)} {
				if strings.Contains(text, secret) {
					t.Errorf("%s shows a private key", page)
				}
			}
		}
		for _, file := range []string{"store", "envoy.log"} {
			if content, _ := os.ReadFile(g.in(file)); strings.Contains(string(content), "PRIVATE KEY") {
				t.Errorf("%s holds a private key", file)
			}
		}
	})
}

// certificateForRSA says hello as a client of TLS 1.2 that knows RSA alone, which
// crypto/tls cannot be, and returns the certificate of the answer.
func certificateForRSA(address, name string) ([]byte, error) {
	sized := func(bytes int, parts ...[]byte) []byte {
		content := slices.Concat(parts...)
		size := len(content)
		prefix := make([]byte, bytes)
		for i := bytes - 1; i >= 0; i-- {
			prefix[i], size = byte(size), size>>8
		}
		return slices.Concat(prefix, content)
	}
	extension := func(kind byte, content []byte) []byte { return append([]byte{0, kind}, sized(2, content)...) }
	hello := slices.Concat([]byte{3, 3}, make([]byte, 32), // version, random
		sized(1), sized(2, []byte{0xc0, 0x2f}), sized(1, []byte{0}), // session, ECDHE-RSA-AES128-GCM-SHA256, compression
		sized(2,
			extension(0, sized(2, []byte{0}, sized(2, []byte(name)))), // server_name
			extension(10, sized(2, []byte{0, 23})),                    // supported_groups: P-256
			extension(13, sized(2, []byte{8, 4, 4, 1})),               // signature_algorithms: RSA with SHA-256
		))
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Write(slices.Concat([]byte{22, 3, 1}, sized(2, []byte{1}, sized(3, hello)))); err != nil {
		return nil, err
	}
	var handshake []byte
	for {
		for len(handshake) >= 4 { // a message: its kind, its size, itself
			size := int(handshake[1])<<16 | int(handshake[2])<<8 | int(handshake[3])
			if len(handshake) < 4+size {
				break
			}
			if handshake[0] == 11 { // certificates: the size of all, then of the first
				first := handshake[4+3:]
				return first[3 : 3+(int(first[0])<<16|int(first[1])<<8|int(first[2]))], nil
			}
			handshake = handshake[4+size:]
		}
		record := make([]byte, 5)
		if _, err := io.ReadFull(conn, record); err != nil {
			return nil, err
		}
		content := make([]byte, int(record[3])<<8|int(record[4]))
		if _, err := io.ReadFull(conn, content); err != nil {
			return nil, err
		}
		if record[0] != 22 {
			return nil, fmt.Errorf("record of type %d: %v", record[0], content)
		}
		handshake = append(handshake, content...)
	}
}

// A certificate is replaced while requests are made: by connections that stay
// and by new ones, none of which fails.
func TestRotation(t *testing.T) {
	t.Parallel()
	g := startGateway(t, 1)
	g.begin(t)
	authority := certtest.NewAuthority(t)
	next := func() *model.Certificate { return certificate(t, "cert", authority.Issue(t, "a.example.com")) }
	content := func(c *model.Certificate) Resources { return g.content(host{"a.example.com", []*model.Certificate{c}}) }
	g.manager.applied(t, g.manager.Set(gw, content(next())).Sequence)

	var requests, connections atomic.Int64
	stop := make(chan struct{})
	var load sync.WaitGroup
	for worker := range 4 {
		load.Go(func() {
			client := g.client(&tls.Config{ServerName: "a.example.com", RootCAs: authority.Pool()})
			client.Transport.(*http.Transport).DisableKeepAlives = worker%2 == 0 // HTTP/1.1, a connection each
			for {
				select {
				case <-stop:
					return
				default:
				}
				got, _, err := get(client, "https://a.example.com/", "")
				if err != nil || got != "200 a.example.com https /" {
					t.Errorf("request %d: %q, %v", requests.Load(), got, err)
					return
				}
				requests.Add(1)
				if worker%2 == 0 {
					connections.Add(1)
				}
			}
		})
	}
	var last *model.Certificate
	const rotations = 20
	for range rotations {
		for wanted := requests.Load() + 5; requests.Load() < wanted && !t.Failed(); {
			time.Sleep(time.Millisecond)
		}
		last = next()
		g.manager.applied(t, g.manager.Set(gw, content(last)).Sequence)
	}
	conn, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", g.ports[0]), &tls.Config{ServerName: "a.example.com", RootCAs: authority.Pool()})
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(last.Chain)
	if string(conn.ConnectionState().PeerCertificates[0].Raw) != string(block.Bytes) {
		t.Error("a rotation was acknowledged, and the certificate before it is served")
	}
	conn.Close()
	close(stop)
	load.Wait()
	t.Logf("%d requests, %d connections, %d rotations", requests.Load(), connections.Load(), rotations)
	if requests.Load() < rotations {
		t.Errorf("only %d requests", requests.Load())
	}
}

// Agent and Envoy restart without any manager: HTTPS is served again. A secret
// that the manager has no good content of is served with the last good one,
// also by a manager that never saw that.
func TestTLSWithoutManager(t *testing.T) {
	t.Parallel()
	g := startGateway(t, 1)
	g.begin(t)
	authority := certtest.NewAuthority(t)
	good := certificate(t, "cert", authority.Issue(t, "a.example.com"))
	g.manager.applied(t, g.manager.Set(gw, g.content(host{"a.example.com", []*model.Certificate{good}})).Sequence)
	client := g.client(&tls.Config{ServerName: "a.example.com", RootCAs: authority.Pool()})
	serves := func() {
		t.Helper()
		client.CloseIdleConnections()
		if got, _, err := get(client, "https://a.example.com/", ""); err != nil || got != "200 a.example.com https /" {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	serves()
	restart := func() {
		t.Helper()
		g.end()
		g.begin(t)
		for deadline := time.Now().Add(10 * time.Second); !g.relay.Status().Applied; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the pod does not become ready")
			}
		}
	}
	g.manager.grpc.Stop()
	restart()
	serves()

	g.end()
	g.manager = g.place.start(t)
	g.begin(t)
	broken := &model.Certificate{Secret: good.Secret, Problem: "malformed"}
	other := certificate(t, "other", authority.Issue(t, "b.example.com"))
	g.manager.applied(t, g.manager.Set(gw, g.content(
		host{"a.example.com", []*model.Certificate{broken}}, host{"b.example.com", []*model.Certificate{other}})).Sequence)
	serves()
	g.manager.grpc.Stop()
	restart()
	serves()

	// Where no pod ever had one, the others are served within a second or so.
	g.end()
	os.Remove(g.in("store"))
	os.Remove(g.in("secrets"))
	g.manager = g.place.start(t)
	g.begin(t)
	start := time.Now()
	g.manager.applied(t, g.manager.Set(gw, g.content(
		host{"a.example.com", []*model.Certificate{broken}}, host{"b.example.com", []*model.Certificate{other}})).Sequence)
	b := g.client(&tls.Config{ServerName: "b.example.com", RootCAs: authority.Pool()})
	for {
		got, _, err := get(b, "https://b.example.com/", "")
		if err == nil && got == "200 b.example.com https /" {
			break
		}
		if time.Since(start) > 5*time.Second {
			t.Fatalf("its neighbour keeps b.example.com from being served: %q, %v", got, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Logf("served beside a hostname without certificate after %v", time.Since(start).Round(time.Millisecond))
	if _, _, err := get(client, "https://a.example.com/", ""); err == nil {
		t.Error("a hostname without certificate is served")
	}
}

// Envoy takes what model.ReadCertificate takes, and refuses what that refuses for
// Envoy's sake.
func TestCertificatesThatEnvoyTakes(t *testing.T) {
	t.Parallel()
	g := startGateway(t, 1)
	g.begin(t)
	authority := certtest.NewAuthority(t)
	_, ed25519Key, err := ed25519.GenerateKey(cryptorand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p256 := certtest.ECDSA(t, elliptic.P256())
	name := "a.example.com"
	issue := func(key crypto.Signer, change func(*x509.Certificate)) certtest.Pair {
		return authority.IssueFor(t, key, change, name)
	}
	number := 0
	good := issue(p256, nil)
	mustStaple := func(c *x509.Certificate) {
		c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24}, Value: []byte{0x30, 3, 2, 1, 5}}}
	}
	for what, c := range map[string]struct {
		pair  certtest.Pair
		taken bool
	}{
		"ECDSA, P-256":   {good, true},
		"ECDSA, P-384":   {issue(certtest.ECDSA(t, elliptic.P384()), nil), true},
		"ECDSA, P-521":   {issue(certtest.ECDSA(t, elliptic.P521()), nil), true},
		"RSA, 2048 bits": {issue(certtest.RSA(t, 2048), nil), true},
		"Ed25519":        {issue(ed25519Key, nil), true},
		"RSA, 4096 bits": {issue(certtest.RSA(t, 4096), nil), true},
		"expired":        {issue(p256, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), true},
		"no key usage":   {issue(p256, func(c *x509.Certificate) { c.KeyUsage = 0 }), true},
		"an authority's": {issue(p256, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }), true},
		"no name":        {issue(p256, func(c *x509.Certificate) { c.DNSNames = nil }), true},
		"a critical extension": {issue(p256, func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
		}), true},
		"RSA, 1024 bits":            {issue(certtest.RSA(t, 1024), nil), false},
		"ECDSA, P-224":              {issue(certtest.ECDSA(t, elliptic.P224()), nil), false},
		"ECDSA, not for signatures": {issue(p256, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }), false},
		"the key of another":        {certtest.Pair{Certificate: good.Certificate, Key: authority.Issue(t, name).Key}, false},
		"must staple":               {issue(p256, mustStaple), false},
	} {
		t.Run(what, func(t *testing.T) {
			number++ // so that nobody takes one case for another
			read := model.ReadCertificate(&corev1.Secret{
				Namespace: "shop", Name: fmt.Sprintf("cert-%d-", number), Type: corev1.SecretTypeTLS,
				Data: map[string][]byte{"tls.crt": c.pair.Certificate, "tls.key": c.pair.Key},
			}, nil)
			if taken := read.Problem == ""; taken != c.taken {
				t.Fatalf("read: %q", read.Problem)
			}
			g.manager.Set(gw, g.content())
			refusal := ""
			if c.taken {
				g.manager.applied(t, g.manager.Set(gw, g.content(host{name, []*model.Certificate{read}})).Sequence)
			} else {
				given := &model.Certificate{Secret: read.Secret, Chain: c.pair.Certificate, PrivateKey: c.pair.Key}
				g.manager.Set(gw, g.content(host{name, []*model.Certificate{given}}))
				g.manager.until(t, "a refusal", func(a Acks) bool {
					if len(a.Pods) == 1 && a.Pods[0].Nack != nil {
						refusal = a.Pods[0].Nack.Message
					}
					return strings.Contains(refusal, read.Secret.String())
				})
			}
			conn, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", g.ports[0]), &tls.Config{InsecureSkipVerify: true, ServerName: name})
			if err == nil {
				conn.Close()
			}
			t.Logf("Envoy: %q, handshake: %v", refusal, err)
			if c.taken != (err == nil) {
				t.Errorf("taken %t; handshake: %v", c.taken, err)
			}
			if strings.Contains(refusal, "PRIVATE") {
				t.Errorf("the refusal shows the key: %s", refusal)
			}
		})
	}
}
