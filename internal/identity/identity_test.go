package identity

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	clocktesting "k8s.io/utils/clock/testing"
)

const (
	serverName = "manager.meshroute-system.svc"
	goodToken  = "token-of-shop-edge"
)

var (
	// Far from the real time, so that a certificate checked against the machine's
	// clock is never valid.
	epoch = time.Date(2051, 3, 1, 12, 0, 0, 0, time.UTC)
	edge  = Gateway{Namespace: "shop", Name: "edge", Pod: "edge-7d9f-x2x4z"}
)

func newBundle(t *testing.T, now time.Time) Bundle {
	t.Helper()
	b, err := NewBundle(now)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func loadBundle(t *testing.T, b Bundle) *Authority {
	t.Helper()
	a, err := LoadAuthority(b)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// journal keeps what was logged; each line can be awaited.
type journal struct {
	mu    sync.Mutex
	text  strings.Builder
	lines chan string
}

func newJournal() (*journal, logr.Logger) {
	j := &journal{lines: make(chan string, 1000)}
	return j, funcr.New(func(_, args string) {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.text.WriteString(args + "\n")
		j.lines <- args
	}, funcr.Options{})
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

// await returns the next line that contains part.
func (j *journal) await(t *testing.T, part string) string {
	t.Helper()
	limit := time.After(20 * time.Second)
	for {
		select {
		case line := <-j.lines:
			if strings.Contains(line, part) {
				return line
			}
		case <-limit:
			t.Fatalf("%q was not logged; log:\n%s", part, j)
		}
	}
}

func acceptGoodToken(_ context.Context, token string, claimed Gateway) error {
	if token != goodToken || claimed != edge {
		return fmt.Errorf("%w: token %s is not for %s", ErrUnauthenticated, token, claimed)
	}
	return nil
}

// serve runs a handler on addr, as the manager does, and returns its URL.
func serve(t *testing.T, addr string, config *tls.Config, h http.Handler) string {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	go func() { _ = srv.Serve(tls.NewListener(l, config)) }()
	t.Cleanup(func() { _ = srv.Close() })
	return "https://" + l.Addr().String()
}

func serveIssuer(t *testing.T, a *Authority, clk *clocktesting.FakeClock) string {
	return serve(t, "127.0.0.1:0", a.ServerTLS([]string{serverName}, clk), a.Handler(acceptGoodToken, clk, logr.Discard()))
}

// serveXDS is a gRPC server that answers each call with the peer's identity.
func serveXDS(t *testing.T, config *tls.Config) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)), grpc.UnaryInterceptor(
		func(ctx context.Context, _ any, _ *grpc.UnaryServerInfo, _ grpc.UnaryHandler) (any, error) {
			g, err := PeerGateway(ctx)
			if err != nil {
				return nil, err
			}
			return nil, status.Error(100, g.String())
		}))
	healthpb.RegisterHealthServer(srv, health.NewServer())
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(srv.Stop)
	return l.Addr().String()
}

// call connects anew and returns who the server says we are.
func call(t *testing.T, addr string, config *tls.Config) (string, error) {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err = healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	if status.Code(err) == 100 {
		return status.Convert(err).Message(), nil
	}
	return "", err
}

func wantCall(t *testing.T, what, addr string, config *tls.Config) {
	t.Helper()
	if got, err := call(t, addr, config); err != nil || got != edge.String() {
		t.Errorf("%s: got %q, %v; want the call to come from %s", what, got, err, edge)
	}
}

func wantRefusal(t *testing.T, what, reason, addr string, config *tls.Config) {
	t.Helper()
	if got, err := call(t, addr, config); err == nil || !strings.Contains(err.Error(), reason) {
		t.Errorf("%s: got %q, %v; want a refusal because of %q", what, got, err, reason)
	}
}

// wantServerRefusal is for refusals that only the server can explain: in TLS 1.3
// the client has finished its handshake by then.
func wantServerRefusal(t *testing.T, what, reason, addr string, server, client *tls.Config) {
	t.Helper()
	wantRefusal(t, what, "", addr, client)
	near, far := net.Pipe()
	defer near.Close()
	go func() {
		conn := tls.Client(far, client)
		_, _ = conn.Read(make([]byte, 1))
		_ = far.Close()
	}()
	if err := tls.Server(near, server).HandshakeContext(t.Context()); err == nil || !strings.Contains(err.Error(), reason) {
		t.Errorf("%s: the server says %v, want …%s…", what, err, reason)
	}
}

type agent struct {
	*Client
	log  *journal
	stop func()
}

func fixed(b []byte) func() ([]byte, error) {
	return func() ([]byte, error) { return b, nil }
}

// runAgent starts a Client that trusts roots; change edits its options.
func runAgent(t *testing.T, url string, roots []byte, clk *clocktesting.FakeClock, change ...func(*ClientOptions)) agent {
	t.Helper()
	j, log := newJournal()
	opts := ClientOptions{
		URL: url, Roots: fixed(roots), Token: fixed([]byte(goodToken + "\n")), Gateway: edge,
		ServerName: serverName, Clock: clk, Log: log,
	}
	for _, c := range change {
		c(&opts)
	}
	c, err := NewClient(opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run returned %v after its context was cancelled", err)
		}
	})
	t.Cleanup(stop)
	return agent{c, j, stop}
}

func (a agent) awaitReady(t *testing.T) {
	t.Helper()
	select {
	case <-a.Ready():
	case <-time.After(20 * time.Second):
		t.Fatalf("no certificate; log:\n%s", a.log)
	}
}

// awaitTimer returns when somebody waits for the fake clock.
func awaitTimer(t *testing.T, clk *clocktesting.FakeClock) {
	t.Helper()
	for limit := time.Now().Add(20 * time.Second); !clk.HasWaiters(); time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("nobody waits for the clock")
		}
	}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newCSR(t *testing.T, template *x509.CertificateRequest, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func TestGatewayURI(t *testing.T) {
	const good = "spiffe://meshroute.io/ns/shop/gateway/edge/pod/edge-7d9f-x2x4z"
	if got, err := ParseGateway(good); err != nil || got != edge || got.URI() != good || edge.url().String() != good {
		t.Errorf("got %+v, %v from %s", got, err, good)
	}
	longest := Gateway{strings.Repeat("n", 63), strings.Repeat("g", 253), strings.Repeat("p", 253)}
	if got, err := ParseGateway(longest.URI()); err != nil || got != longest {
		t.Errorf("the longest names: got %v, %v", got, err)
	}
	for name, uri := range map[string]string{
		"empty":           "",
		"another scheme":  strings.Replace(good, "spiffe", "https", 1),
		"another domain":  strings.Replace(good, "meshroute.io", "meshroute.io.evil", 1),
		"a port":          strings.Replace(good, "meshroute.io", "meshroute.io:1", 1),
		"a user":          strings.Replace(good, "meshroute.io", "a@meshroute.io", 1),
		"a query":         good + "?x",
		"a fragment":      good + "#x",
		"a trailing /":    good + "/",
		"no pod":          "spiffe://meshroute.io/ns/shop/gateway/edge/pod/",
		"pod missing":     "spiffe://meshroute.io/ns/shop/gateway/edge",
		"another word":    strings.Replace(good, "/ns/", "/nS/", 1),
		"upper case":      strings.Replace(good, "shop", "Shop", 1),
		"an escape":       strings.Replace(good, "shop", "sh%6Fp", 1),
		"an escaped /":    strings.Replace(good, "edge/", "e%2Fdge/", 1),
		"dots":            strings.Replace(good, "shop", "..", 1),
		"dot in ns":       strings.Replace(good, "shop", "a.b", 1),
		"a newline":       good + "\n",
		"too long a name": strings.Replace(good, "shop", strings.Repeat("n", 64), 1),
		"endless slashes": strings.Repeat("/", 1<<20),
		"endless":         good + strings.Repeat("a", 1<<20),
	} {
		if got, err := ParseGateway(uri); err == nil {
			t.Errorf("%s: accepted as %v", name, got)
		} else if len(err.Error()) > 2*maxURI {
			t.Errorf("%s: an error of %d bytes", name, len(err.Error()))
		}
	}
}

func TestIssueAndConnect(t *testing.T) {
	clk := clocktesting.NewFakeClock(epoch)
	a := loadBundle(t, newBundle(t, epoch.Add(-48*time.Hour)))
	mutual := a.MutualTLS([]string{serverName}, clk)
	xds := serveXDS(t, mutual)
	c := runAgent(t, serveIssuer(t, a, clk), a.RootsPEM(), clk)
	c.awaitReady(t)

	wantCall(t, "with its certificate", xds, c.TLSConfig())
	if left := c.cert.Load().Leaf.NotAfter.Sub(epoch); left != GatewayLifetime {
		t.Errorf("the certificate lives %s, want %s", left, GatewayLifetime)
	}

	early, err := NewClient(c.opts)
	if err != nil {
		t.Fatal(err)
	}
	wantRefusal(t, "before the first certificate", "not issued a certificate yet", xds, early.TLSConfig())

	anonymous := c.TLSConfig()
	anonymous.GetClientCertificate = nil
	wantServerRefusal(t, "without a certificate", "didn't provide a certificate", xds, mutual, anonymous)

	withCert := func(cert *tls.Certificate) *tls.Config {
		config := c.TLSConfig()
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
		return config
	}
	key := newKey(t)
	signAt := func(now time.Time, a *Authority, template *x509.Certificate) *tls.Certificate {
		chain, err := a.current.Load().sign(template, key.Public(), time.Hour, now)
		if err != nil {
			t.Fatal(err)
		}
		return tlsCertificate(chain, key)
	}
	sign := func(a *Authority, template *x509.Certificate) *tls.Certificate { return signAt(epoch, a, template) }
	client, server := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	uris := []*url.URL{edge.url()}
	serving, err := mutual.GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	stranger := loadBundle(t, newBundle(t, epoch))
	wantServerRefusal(t, "another authority's certificate", "unknown authority", xds, mutual,
		withCert(sign(stranger, &x509.Certificate{URIs: uris, ExtKeyUsage: client})))
	wantServerRefusal(t, "a serving certificate", "incompatible key usage", xds, mutual,
		withCert(serving))
	wantRefusal(t, "a certificate without gateway", ErrUnauthenticated.Error(), xds,
		withCert(sign(a, &x509.Certificate{ExtKeyUsage: client})))
	wantRefusal(t, "a certificate of two gateways", ErrUnauthenticated.Error(), xds,
		withCert(sign(a, &x509.Certificate{URIs: append(uris, uris...), ExtKeyUsage: client})))

	// The server is checked as strictly.
	wantDistrust := func(what, reason string, config *tls.Config) {
		t.Helper()
		wantRefusal(t, what, reason, serveXDS(t, config), c.TLSConfig())
	}
	wantDistrust("a server of another name", "not "+serverName, a.MutualTLS([]string{"other.svc"}, clk))
	wantDistrust("a server of another authority", "unknown authority", stranger.MutualTLS([]string{serverName}, clk))
	wantDistrust("a client's certificate at a server", "incompatible key usage", &tls.Config{
		Certificates: []tls.Certificate{*sign(a, &x509.Certificate{DNSNames: []string{serverName}, ExtKeyUsage: client})},
	})
	wantDistrust("an expired server", "expired", &tls.Config{
		Certificates: []tls.Certificate{*signAt(epoch.Add(-2*time.Hour), a, &x509.Certificate{DNSNames: []string{serverName}, ExtKeyUsage: server})},
	})
	renamed := c.TLSConfig()
	renamed.ServerName = "other.svc"
	wantRefusal(t, "a changed server name", "not "+serverName, serveXDS(t, a.MutualTLS([]string{"other.svc"}, clk)), renamed)

	// Twelve hours later, with nobody renewing.
	old := c.cert.Load()
	c.stop()
	clk.Step(GatewayLifetime + time.Second)
	wantRefusal(t, "an expired certificate, agent's view", "could not be renewed", xds, c.TLSConfig())
	wantServerRefusal(t, "an expired certificate, server's view", "expired", xds, mutual, withCert(old))
}

func TestPeerGatewayNeedsTLS(t *testing.T) {
	for name, ctx := range map[string]context.Context{
		"no peer":  t.Context(),
		"no TLS":   peer.NewContext(t.Context(), &peer.Peer{}),
		"no chain": peer.NewContext(t.Context(), &peer.Peer{AuthInfo: credentials.TLSInfo{}}),
	} {
		if g, err := PeerGateway(ctx); !errors.Is(err, ErrUnauthenticated) {
			t.Errorf("%s: got %v, %v", name, g, err)
		}
	}
}

func TestServerRestartsWithTheSameBundle(t *testing.T) {
	clk := clocktesting.NewFakeClock(epoch)
	b := newBundle(t, epoch)
	a := loadBundle(t, b)
	c := runAgent(t, serveIssuer(t, a, clk), a.RootsPEM(), clk)
	c.awaitReady(t)

	secret := map[string][]byte{"tls.crt": b.CertPEM, "tls.key": b.KeyPEM}
	again := loadBundle(t, Bundle{CertPEM: secret["tls.crt"], KeyPEM: secret["tls.key"]})
	wantCall(t, "after a restart", serveXDS(t, again.MutualTLS([]string{serverName}, clk)), c.TLSConfig())
}

func TestRenewalAtTwoThirds(t *testing.T) {
	clk := clocktesting.NewFakeClock(epoch)
	a := loadBundle(t, newBundle(t, epoch))
	xds := serveXDS(t, a.MutualTLS([]string{serverName}, clk))
	tokens := 0
	c := runAgent(t, serveIssuer(t, a, clk), a.RootsPEM(), clk, func(o *ClientOptions) {
		o.Token = func() ([]byte, error) { tokens++; return []byte(goodToken), nil }
	})
	c.log.await(t, "Certificate obtained")
	first := c.cert.Load()
	awaitTimer(t, clk)

	clk.Step(GatewayLifetime * 59 / 100)
	if !clk.HasWaiters() || c.cert.Load() != first {
		t.Fatal("renewed before 59 % of the certificate's life")
	}
	clk.SetTime(epoch.Add(GatewayLifetime * 2 / 3))
	c.log.await(t, "Certificate obtained")
	second := c.cert.Load()
	if first.PrivateKey.(*ecdsa.PrivateKey).Equal(second.PrivateKey) {
		t.Error("the key was used again")
	}
	if want := epoch.Add(GatewayLifetime*2/3 + GatewayLifetime); !second.Leaf.NotAfter.Equal(want) {
		t.Errorf("the new certificate ends at %s, want %s", second.Leaf.NotAfter, want)
	}
	clk.SetTime(first.Leaf.NotAfter.Add(time.Minute)) // which makes no timer due
	wantCall(t, "with the renewed certificate", xds, c.TLSConfig())
	c.stop()
	if tokens != 2 {
		t.Errorf("the token was read %d times, want once for each request", tokens)
	}
}

func TestServingCertificateIsRenewed(t *testing.T) {
	clk := clocktesting.NewFakeClock(epoch)
	b := newBundle(t, epoch)
	a := loadBundle(t, b)
	config := a.ServerTLS([]string{serverName, "10.0.0.7"}, clk)
	get := func() *x509.Certificate {
		t.Helper()
		cert, err := config.GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return cert.Leaf
	}
	first := get()
	if err := errors.Join(first.VerifyHostname(serverName), first.VerifyHostname("10.0.0.7")); err != nil {
		t.Error(err)
	}
	if first.NotAfter.Sub(epoch) != ServingLifetime {
		t.Errorf("lives %s, want %s", first.NotAfter.Sub(epoch), ServingLifetime)
	}
	clk.Step(ServingLifetime*2/3 - time.Second)
	if get() != first {
		t.Error("replaced before two thirds of its life")
	}
	clk.Step(time.Second)
	second := get()
	if second == first {
		t.Error("not replaced at two thirds of its life")
	}
	if err := a.Update(newBundle(t, epoch)); err != nil {
		t.Fatal(err)
	}
	if get() == second {
		t.Error("not replaced with its authority")
	}
	clk.Step(AuthorityLifetime)
	if _, err := config.GetCertificate(nil); err == nil || !strings.Contains(err.Error(), "delete its Secret") {
		t.Errorf("got %v from an expired authority, want advice", err)
	}
}

func TestLeafNeverOutlivesTheAuthority(t *testing.T) {
	a := loadBundle(t, newBundle(t, epoch))
	_, notAfter, err := a.Sign(newCSR(t, &x509.CertificateRequest{}, newKey(t)), edge, epoch.Add(AuthorityLifetime-time.Hour))
	if want := epoch.Add(AuthorityLifetime); err != nil || !notAfter.Equal(want) {
		t.Errorf("got %s, %v; want %s", notAfter, err, want)
	}
}

func TestRotation(t *testing.T) {
	due := epoch.Add(-backdate).Add((AuthorityLifetime + backdate) * 2 / 3).Truncate(time.Second)
	clk := clocktesting.NewFakeClock(due.Add(-time.Minute))
	before := newBundle(t, epoch)
	if _, changed, err := RotateIfDue(before, clk.Now()); changed || err != nil {
		t.Fatalf("a minute early: changed %v, %v", changed, err)
	}
	a := loadBundle(t, before)
	issuer := serveIssuer(t, a, clk)
	xds := serveXDS(t, a.MutualTLS([]string{serverName}, clk))
	oldRoots := a.RootsPEM()
	oldAgent := runAgent(t, issuer, oldRoots, clk)
	oldAgent.awaitReady(t)
	wantCall(t, "before", xds, oldAgent.TLSConfig())

	clk.SetTime(due)
	after, changed, err := RotateIfDue(before, clk.Now())
	if err != nil || !changed {
		t.Fatalf("when due: changed %v, %v", changed, err)
	}
	if again, changed, err := RotateIfDue(after, clk.Now()); changed || err != nil || !cmp.Equal(again, after) {
		t.Errorf("rotated twice: changed %v, %v", changed, err)
	}
	if err := a.Update(after); err != nil {
		t.Fatal(err)
	}
	roots, err := decodeCerts(a.RootsPEM())
	if err != nil || len(roots) != 2 || bytes.Contains(oldRoots, encodeCerts(roots[:1])) || !bytes.Equal(oldRoots, encodeCerts(roots[1:])) {
		t.Fatalf("the roots are %d, %v; want the new one, then the old one", len(roots), err)
	}

	// The roots file of a new agent may not have been changed yet, may have both
	// roots, or (in the end) only the new one.
	newRoots := encodeCerts(roots[:1])
	agents := map[string]agent{
		"the agent from before":         oldAgent,
		"a new agent with the old root": runAgent(t, issuer, oldRoots, clk),
		"a new agent with both roots":   runAgent(t, issuer, a.RootsPEM(), clk),
		"a new agent with the new root": runAgent(t, issuer, newRoots, clk),
	}
	// Another manager may not have seen the changed Secret yet.
	behind := serveXDS(t, loadBundle(t, before).MutualTLS([]string{serverName}, clk))
	for name, c := range agents {
		c.awaitReady(t)
		wantCall(t, name, xds, c.TLSConfig())
		if !strings.HasSuffix(name, "new root") {
			wantCall(t, name+", at a manager that is behind", behind, c.TLSConfig())
		}
		c.stop()
	}

	// The old root expires; the agents that follow their file go on.
	clk.SetTime(epoch.Add(AuthorityLifetime))
	pruned, changed, err := RotateIfDue(after, clk.Now())
	if err != nil || !changed {
		t.Fatalf("when the old root has expired: changed %v, %v", changed, err)
	}
	if err := a.Update(pruned); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.RootsPEM(), newRoots) || !bytes.Equal(pruned.CertPEM, newRoots) || !bytes.Equal(pruned.KeyPEM, after.KeyPEM) {
		t.Error("more is left than the new root and its key")
	}
	file := oldRoots
	late := runAgent(t, issuer, nil, clk, func(o *ClientOptions) {
		o.Roots = func() ([]byte, error) { return file, nil }
	})
	late.log.await(t, "No certificate")
	awaitTimer(t, clk)
	config := late.TLSConfig()
	wantRefusal(t, "an agent whose file is old", "unknown authority", xds, config)
	file = newRoots // the mounted file changes
	clk.Step(lastRetry)
	late.awaitReady(t)
	wantCall(t, "an agent whose file has changed", xds, config)
}

func TestRotationAfterExpiry(t *testing.T) {
	late := epoch.Add(AuthorityLifetime + time.Hour)
	b, changed, err := RotateIfDue(newBundle(t, epoch), late)
	if err != nil || !changed {
		t.Fatalf("changed %v, %v", changed, err)
	}
	if certs, err := decodeCerts(b.CertPEM); err != nil || len(certs) != 1 || !late.Before(certs[0].NotAfter) {
		t.Errorf("got %d certificates, %v; want one new root", len(certs), err)
	}
}

// An authority of cert-manager may be an intermediate, with its root in ca.crt.
func TestForeignAuthority(t *testing.T) {
	root, rootKey, err := newRoot(epoch)
	if err != nil {
		t.Fatal(err)
	}
	key := newKey(t)
	mid, err := issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: "mid"}, NotBefore: epoch, NotAfter: epoch.Add(90 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}, root, key.Public(), rootKey)
	if err != nil {
		t.Fatal(err)
	}
	b, err := pack(key, mid)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := LoadAuthority(b); err == nil || !strings.Contains(err.Error(), "append the issuer's certificate") {
		t.Errorf("without its issuer: got %v", err)
	}
	rootPEM := encodeCerts([]*x509.Certificate{root})
	a, err := LoadAuthority(b, rootPEM)
	if err != nil {
		t.Fatal(err)
	}
	clk := clocktesting.NewFakeClock(epoch)
	c := runAgent(t, serveIssuer(t, a, clk), rootPEM, clk)
	c.awaitReady(t)
	wantCall(t, "with an intermediate authority", serveXDS(t, a.MutualTLS([]string{serverName}, clk)), c.TLSConfig())
	if _, _, err := RotateIfDue(Bundle{CertPEM: append(b.CertPEM, rootPEM...), KeyPEM: b.KeyPEM}, epoch); err == nil {
		t.Error("rotated what somebody else issued")
	}
}

func TestLoadAuthorityRefuses(t *testing.T) {
	good, other := newBundle(t, epoch), newBundle(t, epoch)
	a := loadBundle(t, good)
	key := newKey(t)
	leaf, _, err := a.Sign(newCSR(t, &x509.CertificateRequest{}, key), edge, epoch)
	if err != nil {
		t.Fatal(err)
	}
	notCA, err := pack(key)
	if err != nil {
		t.Fatal(err)
	}
	notCA.CertPEM = leaf
	for name, b := range map[string]Bundle{
		"empty":               {},
		"another key":         {good.CertPEM, other.KeyPEM},
		"not PEM":             {[]byte("x"), good.KeyPEM},
		"a key among certs":   {append(bytes.Clone(good.CertPEM), other.KeyPEM...), good.KeyPEM},
		"a leaf":              notCA,
		"a broken second one": {append(bytes.Clone(good.CertPEM), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"...), good.KeyPEM},
	} {
		before := a.RootsPEM()
		err := a.Update(b)
		if err == nil || !strings.Contains(err.Error(), "delete it to have a new authority") {
			t.Errorf("%s: got %v, want advice", name, err)
		}
		if !bytes.Equal(a.RootsPEM(), before) {
			t.Errorf("%s: a refused Bundle was taken over", name)
		}
		if a, err := LoadAuthority(b); a != nil || err == nil {
			t.Errorf("%s: got %v, %v", name, a, err)
		}
	}
	if err := a.Update(good, []byte("x")); err == nil {
		t.Error("further roots that are no PEM: accepted")
	}
}

// Nothing of a request but its key gets into the certificate.
func TestSignIgnoresWhatIsAskedFor(t *testing.T) {
	a := loadBundle(t, newBundle(t, epoch))
	key := newKey(t)
	victim := Gateway{"kube-system", "admin", "admin-0"}
	ca, err := asn1.Marshal(struct{ IsCA bool }{true})
	if err != nil {
		t.Fatal(err)
	}
	greedy := newCSR(t, &x509.CertificateRequest{
		Subject:     pkix.Name{CommonName: "meshroute", Organization: []string{"system:masters"}},
		DNSNames:    []string{serverName},
		IPAddresses: []net.IP{net.IPv4(10, 0, 0, 1)},
		URIs:        []*url.URL{victim.url()},
		ExtraExtensions: []pkix.Extension{
			{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: ca},                               // basic constraints
			{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Critical: true, Value: []byte{0x03, 0x02, 0x01, 0x06}},   // key usage: sign certificates
			{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Value: []byte{0x30, 0x06, 6, 4, 0x55, 0x1d, 0x25, 0x00}}, // any extended usage
		},
	}, key)
	chain, notAfter, err := a.Sign(greedy, edge, epoch)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := decodeCerts(chain)
	if err != nil || len(certs) != 1 {
		t.Fatalf("%d certificates, %v", len(certs), err)
	}
	got := certs[0]
	type asked struct {
		URIs                  string
		Subject               string
		DNS, IPs, Extensions  int
		IsCA                  bool
		Usage                 x509.KeyUsage
		ExtUsage              []x509.ExtKeyUsage
		NotBefore, NotAfter   time.Time
		UnknownExtUsage, Same bool
	}
	want := asked{
		URIs: "[" + edge.URI() + "]", Usage: x509.KeyUsageDigitalSignature, ExtUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		Extensions: 5, // key usage, extended usage, basic constraints, authority key id, alternative name
		NotBefore:  epoch.Add(-backdate), NotAfter: epoch.Add(GatewayLifetime), Same: true,
	}
	if diff := cmp.Diff(want, asked{
		URIs: fmt.Sprint(got.URIs), Subject: got.Subject.String(), DNS: len(got.DNSNames), IPs: len(got.IPAddresses),
		Extensions: len(got.Extensions), IsCA: got.IsCA, Usage: got.KeyUsage, ExtUsage: got.ExtKeyUsage,
		NotBefore: got.NotBefore, NotAfter: got.NotAfter,
		UnknownExtUsage: len(got.UnknownExtKeyUsage) > 0, Same: key.PublicKey.Equal(got.PublicKey) && notAfter.Equal(got.NotAfter),
	}); diff != "" {
		t.Errorf("certificate (-want +got):\n%s", diff)
	}
}

func TestSignChecksTheRequest(t *testing.T) {
	a := loadBundle(t, newBundle(t, epoch))
	ec := func(c elliptic.Curve) crypto.Signer {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	rsaKey := func(bits int) crypto.Signer {
		k, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr := func(k crypto.Signer) []byte { return newCSR(t, &x509.CertificateRequest{}, k) }
	good := csr(newKey(t))
	forged, _ := pem.Decode(good)
	forged.Bytes[len(forged.Bytes)-1] ^= 1
	for name, c := range map[string]struct {
		csr []byte
		gw  Gateway
		ok  bool
	}{
		"P-256":             {csr: good, gw: edge, ok: true},
		"P-384":             {csr: csr(ec(elliptic.P384())), gw: edge, ok: true},
		"Ed25519":           {csr: csr(ed), gw: edge, ok: true},
		"RSA 2048":          {csr: csr(rsaKey(2048)), gw: edge, ok: true},
		"RSA 1024":          {csr: csr(rsaKey(1024)), gw: edge},
		"P-224":             {csr: csr(ec(elliptic.P224())), gw: edge},
		"P-521":             {csr: csr(ec(elliptic.P521())), gw: edge},
		"forged signature":  {csr: pem.EncodeToMemory(forged), gw: edge},
		"empty":             {gw: edge},
		"not PEM":           {csr: []byte("hello"), gw: edge},
		"not a request":     {csr: a.RootsPEM(), gw: edge},
		"two requests":      {csr: append(bytes.Clone(good), good...), gw: edge},
		"garbage in PEM":    {csr: []byte("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"), gw: edge},
		"too large":         {csr: append(bytes.Repeat([]byte("\n"), maxCSR), good...), gw: edge},
		"a gateway with /":  {csr: good, gw: Gateway{"shop", "edge/pod/x", "y"}},
		"a gateway of none": {csr: good},
	} {
		chain, _, err := a.Sign(c.csr, c.gw, epoch)
		if c.ok && err != nil || !c.ok && (!errors.Is(err, errBadRequest) || chain != nil) {
			t.Errorf("%s: got %q, %v", name, chain, err)
		}
	}
}

func TestHandler(t *testing.T) {
	a := loadBundle(t, newBundle(t, epoch))
	clk := clocktesting.NewFakePassiveClock(epoch)
	csr, err := json.Marshal(string(newCSR(t, &x509.CertificateRequest{}, newKey(t))))
	if err != nil {
		t.Fatal(err)
	}
	const gw = `{"namespace":"shop","name":"edge","pod":"edge-7d9f-x2x4z"}`
	body := `{"csr":` + string(csr) + `,"gateway":` + gw + `}`
	down := func(_ context.Context, token string, _ Gateway) error {
		return errors.New("API server is down, token " + token)
	}
	for name, c := range map[string]struct {
		method, path, token, body string
		verify                    func(context.Context, string, Gateway) error
		want                      int
		wantError                 string
	}{
		"issued":               {want: 200},
		"scheme in lower case": {token: "bearer " + goodToken, want: 200},
		"another path":         {path: "/v1/certificate/x", want: 404, wantError: "/v1/certificate"},
		"GET":                  {method: "GET", want: 405, wantError: "POST"},
		"no token":             {token: "-", want: 401, wantError: "token is required"},
		"empty token":          {token: "Bearer ", want: 401, wantError: "token is required"},
		"basic auth":           {token: "Basic " + goodToken, want: 401, wantError: "token is required"},
		"huge token":           {token: "Bearer " + strings.Repeat("x", maxToken+1), want: 401, wantError: "token is required"},
		"wrong token":          {token: "Bearer stolen-secret", want: 401, wantError: "does not prove"},
		"another gateway":      {body: strings.Replace(body, `"shop"`, `"bank"`, 1), want: 401, wantError: "does not prove"},
		"verification down":    {verify: down, want: 503, wantError: "try again"},
		"oversized":            {body: body + strings.Repeat(" ", maxBody), want: 413, wantError: "65536"},
		"empty body":           {body: " ", want: 400, wantError: "not a request"},
		"cut off":              {body: body[:len(body)-1], want: 400, wantError: "not a request"},
		"trailing":             {body: body + "{}", want: 400, wantError: "not a request"},
		"unknown field":        {body: strings.Replace(body, `{"csr"`, `{"isCA":true,"csr"`, 1), want: 400, wantError: `unknown field "isCA"`},
		"field twice":          {body: strings.Replace(body, `{"csr"`, `{"gateway":`+gw+`,"csr"`, 1), want: 400, wantError: `duplicate field "gateway"`},
		"another case":         {body: strings.Replace(body, `"csr"`, `"CSR"`, 1), want: 400, wantError: `unknown field "CSR"`},
		"wrong type":           {body: `[]`, want: 400, wantError: "not a request"},
		"null":                 {body: `null`, want: 400, wantError: "gateway namespace"},
		"bad gateway":          {body: strings.Replace(body, `"edge"`, `"../x"`, 1), want: 400, wantError: "gateway name"},
		"bad request":          {body: `{"csr":"x","gateway":` + gw + `}`, want: 400, wantError: "not one PEM block"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.verify == nil {
				c.verify = acceptGoodToken
			}
			or := func(s, def string) string {
				if s == "" {
					return def
				}
				return s
			}
			j, log := newJournal()
			req := httptest.NewRequest(or(c.method, "POST"), or(c.path, "/v1/certificate"), strings.NewReader(or(c.body, body)))
			if c.token != "-" {
				req.Header.Set("Authorization", or(c.token, "Bearer "+goodToken))
			}
			rec := httptest.NewRecorder()
			a.Handler(c.verify, clk, log).ServeHTTP(rec, req)

			var got struct {
				certificateResponse
				errorResponse
			}
			if err := json.Unmarshal(rec.Body.Bytes(), &got); err != nil {
				t.Fatalf("%v in %s", err, rec.Body)
			}
			if rec.Code != c.want || !strings.Contains(got.Error, c.wantError) || (got.Error == "") != (c.want == 200) {
				t.Errorf("got %d %q, want %d …%s…", rec.Code, got.Error, c.want, c.wantError)
			}
			if signed := strings.Contains(rec.Body.String(), "BEGIN CERTIFICATE"); signed != (c.want == 200) {
				t.Errorf("signed: %v; %s", signed, rec.Body)
			}
			if c.want == 200 && (got.Roots != string(a.RootsPEM()) || !got.NotAfter.Equal(epoch.Add(GatewayLifetime))) {
				t.Errorf("got roots %q until %s", got.Roots, got.NotAfter)
			}
			for _, secret := range []string{goodToken, "stolen-secret"} {
				if strings.Contains(j.String()+rec.Body.String(), secret) {
					t.Errorf("the token is shown:\n%s\n%s", j, rec.Body)
				}
			}
		})
	}
}

func TestManagerIsAwayThenBack(t *testing.T) {
	clk := clocktesting.NewFakeClock(epoch)
	a := loadBundle(t, newBundle(t, epoch))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()

	c := runAgent(t, "https://"+addr, a.RootsPEM(), clk)
	longest := lastRetry
	for range 8 {
		c.log.await(t, "No certificate")
		awaitTimer(t, clk)
		clk.Step(longest)
	}
	c.log.await(t, "No certificate")
	awaitTimer(t, clk)
	clk.Step(lastRetry * 7 / 10)
	if !clk.HasWaiters() {
		t.Error("after nine failures it waits less than 70 % of the longest wait")
	}
	broken := true // back, but its token check is not
	serve(t, addr, a.ServerTLS([]string{serverName}, clk), a.Handler(func(context.Context, string, Gateway) error {
		if broken {
			broken = false
			return errors.New("API server is down")
		}
		return nil
	}, clk, logr.Discard()))
	clk.Step(lastRetry)
	c.log.await(t, "503")
	awaitTimer(t, clk)
	clk.Step(lastRetry)
	c.awaitReady(t)
	if strings.Contains(c.log.String(), goodToken) {
		t.Errorf("the token is logged:\n%s", c.log)
	}
}

// A client does not hand its token to a server that it does not know, and does
// not take what is not for it.
func TestClientDistrusts(t *testing.T) {
	clk := clocktesting.NewFakeClock(epoch)
	a, stranger := loadBundle(t, newBundle(t, epoch)), loadBundle(t, newBundle(t, epoch))
	answer := func(status int, body any) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(status)
			_ = json.NewEncoder(w).Encode(body)
		})
	}
	// signed answers with a certificate for the request's key, or another one.
	signed := func(gw Gateway, now time.Time, swapKey bool) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var in certificateRequest
			_ = json.NewDecoder(r.Body).Decode(&in)
			if swapKey {
				in.CSR = string(newCSR(t, &x509.CertificateRequest{}, newKey(t)))
			}
			chain, _, err := a.Sign([]byte(in.CSR), gw, now)
			if err != nil {
				t.Error(err)
			}
			_ = json.NewEncoder(w).Encode(certificateResponse{Certificate: string(chain)})
		})
	}
	never := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a request was sent") })
	names := []string{serverName}
	for name, c := range map[string]struct {
		config *tls.Config
		h      http.Handler
		want   string
	}{
		"another authority":   {stranger.ServerTLS(names, clk), never, "unknown authority"},
		"another name":        {a.ServerTLS([]string{"x"}, clk), never, "not " + serverName},
		"another gateway":     {a.ServerTLS(names, clk), signed(Gateway{"a", "b", "c"}, epoch, false), "not for shop/edge"},
		"another key":         {a.ServerTLS(names, clk), signed(edge, epoch, true), "another key"},
		"an old certificate":  {a.ServerTLS(names, clk), signed(edge, epoch.Add(-GatewayLifetime), false), "compare the clocks"},
		"a coming one":        {a.ServerTLS(names, clk), signed(edge, epoch.Add(time.Hour), false), "compare the clocks"},
		"no certificate":      {a.ServerTLS(names, clk), answer(200, certificateResponse{}), "no certificate found"},
		"not JSON":            {a.ServerTLS(names, clk), answer(200, "x"), "cannot unmarshal"},
		"an endless sentence": {a.ServerTLS(names, clk), answer(400, errorResponse{strings.Repeat("x", 1000)}), "400 Bad Request: xxx"},
		"an endless body":     {a.ServerTLS(names, clk), answer(200, strings.Repeat("x", 1<<20)), "unexpected end"},
		"a redirect":          {a.ServerTLS(names, clk), answer(307, nil), "307 Temporary Redirect"},
	} {
		t.Run(name, func(t *testing.T) {
			agent := runAgent(t, serve(t, "127.0.0.1:0", c.config, c.h), a.RootsPEM(), clk)
			if line := agent.log.await(t, "No certificate"); !strings.Contains(line, c.want) || len(line) > 1000 {
				t.Errorf("got %s, want …%s…", line, c.want)
			}
		})
	}
}

func TestNewClientRefuses(t *testing.T) {
	good := ClientOptions{URL: "https://manager:9443", Roots: fixed(nil), Token: fixed(nil), Gateway: edge}
	c, err := NewClient(good)
	if err != nil || c.opts.ServerName != "manager" || c.opts.URL != "https://manager:9443/v1/certificate" {
		t.Errorf("got %+v, %v", c, err)
	}
	for name, change := range map[string]func(*ClientOptions){
		"plain HTTP": func(o *ClientOptions) { o.URL = "http://manager" },
		"no host":    func(o *ClientOptions) { o.URL = "https://:9443" },
		"no URL":     func(o *ClientOptions) { o.URL = "" },
		"not a URL":  func(o *ClientOptions) { o.URL = "https://%zz" },
		"no roots":   func(o *ClientOptions) { o.Roots = nil },
		"no token":   func(o *ClientOptions) { o.Token = nil },
		"no gateway": func(o *ClientOptions) { o.Gateway = Gateway{} },
	} {
		opts := good
		change(&opts)
		if _, err := NewClient(opts); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestKeysAreNeverPrinted(t *testing.T) {
	clk := clocktesting.NewFakeClock(epoch)
	b := newBundle(t, epoch)
	a := loadBundle(t, b)
	c := runAgent(t, serveIssuer(t, a, clk), a.RootsPEM(), clk)
	c.awaitReady(t)
	c.stop()
	agentKey, err := c.cert.Load().PrivateKey.(*ecdsa.PrivateKey).Bytes()
	if err != nil {
		t.Fatal(err)
	}

	var printed []string
	for name, v := range map[string]any{
		"Bundle": b, "*Bundle": &b, "key": b.KeyPEM, "in a struct": struct{ B []Bundle }{[]Bundle{b}},
		"Authority": a, "Client": c.Client,
	} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
			printed = append(printed, name+" "+verb+" "+fmt.Sprintf(verb, v))
		}
	}
	for _, v := range []any{b, &b, b.KeyPEM, map[string]any{"b": b}} {
		out, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		printed = append(printed, "JSON "+string(out))
	}
	var logged bytes.Buffer
	slog.New(slog.NewTextHandler(&logged, nil)).Info("x", "bundle", b, "key", b.KeyPEM)
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("x", "bundle", b, "key", b.KeyPEM)
	printed = append(printed, "slog "+logged.String(), "String "+b.KeyPEM.String())

	for _, key := range [][]byte{b.KeyPEM, agentKey} {
		part := key[len(key)/2:][:8]
		numbers := strings.Trim(fmt.Sprint(part), "[]")
		for _, text := range printed {
			for _, form := range []string{
				string(part), numbers, strings.Trim(fmt.Sprintf("%#v", part), "[]byte{}"),
				fmt.Sprintf("%x", part), fmt.Sprintf("%X", part),
			} {
				if strings.Contains(text, form) {
					t.Errorf("a key is shown as %q in %.300s", form, text)
				}
			}
			if strings.HasPrefix(text, "JSON") && !strings.Contains(text, hidden) {
				t.Errorf("nothing tells that a key was hidden: %s", text)
			}
		}
	}
}
