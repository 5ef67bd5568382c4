package identity

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/utils/clock"
)

// Waits between attempts to get a certificate; attemptTimeout bounds one.
const (
	firstRetry     = time.Second
	lastRetry      = time.Minute
	attemptTimeout = 30 * time.Second
)

// ClientOptions say who an agent is and whom it asks. All but ServerName, Clock
// and Log are required.
type ClientOptions struct {
	// URL of the manager's certificate endpoint, "https://host:port".
	URL string
	// Roots returns the trusted roots in PEM. It is called for each handshake,
	// because a mounted ConfigMap changes when the authority rotates.
	Roots func() ([]byte, error)
	// Token returns the token that proves Gateway to the manager. It is called
	// for each request, because projected tokens are short-lived.
	Token   func() ([]byte, error)
	Gateway Gateway
	// ServerName is what the manager's certificate must be valid for, here and
	// for xDS. Empty means the host in URL.
	ServerName string
	Clock      clock.Clock // nil means the real one
	Log        logr.Logger
}

// Client keeps an agent in possession of a valid certificate.
type Client struct {
	opts  ClientOptions
	ready chan struct{}
	cert  atomic.Pointer[tls.Certificate]
}

// NewClient checks the options. Nothing is asked of the manager before Run.
func NewClient(opts ClientOptions) (*Client, error) {
	u, err := url.Parse(opts.URL)
	if err != nil {
		return nil, fmt.Errorf("the manager's URL: %w", err)
	}
	if u.Scheme != "https" || u.Hostname() == "" {
		return nil, fmt.Errorf("the manager's URL %q must be https://host:port, because a token is sent to it", opts.URL)
	}
	if err := opts.Gateway.Validate(); err != nil {
		return nil, err
	}
	if opts.Roots == nil || opts.Token == nil {
		return nil, errors.New("identity.NewClient needs Roots and Token")
	}
	opts.URL = u.JoinPath(CertificatePath).String()
	opts.ServerName = cmp.Or(opts.ServerName, u.Hostname())
	if opts.Clock == nil {
		opts.Clock = clock.RealClock{}
	}
	return &Client{opts: opts, ready: make(chan struct{})}, nil
}

// Ready is closed once there is a first certificate.
func (c *Client) Ready() <-chan struct{} { return c.ready }

// Run obtains a certificate and renews it shortly before two thirds of its
// life. It retries for ever, since an agent has nothing better to do, and
// returns nil when ctx is done. Call it once.
func (c *Client) Run(ctx context.Context) error {
	retry := firstRetry
	for {
		cert, err := c.obtain(ctx)
		select {
		case <-ctx.Done():
			return nil // whatever came of it
		default:
		}
		now := c.opts.Clock.Now()
		var wait time.Duration
		if err != nil {
			// Some jitter, lest all agents return in step after an outage.
			wait = retry - mathrand.N(retry/4)
			retry = min(2*retry, lastRetry)
			c.opts.Log.Error(err, "No certificate from the manager, will retry", "in", wait)
		} else {
			if c.cert.Swap(cert) == nil {
				close(c.ready)
			}
			retry = firstRetry
			wait = cert.Leaf.NotAfter.Sub(now) * 2 / 3
			wait -= mathrand.N(wait / 10)
			c.opts.Log.Info("Certificate obtained", "notAfter", cert.Leaf.NotAfter, "renewIn", wait)
		}
		timer := c.opts.Clock.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C():
		}
	}
}

// TLSConfig is for connections to the manager's xDS endpoint. Each handshake
// shows the newest certificate and trusts the newest roots; it fails while
// there is no valid certificate.
func (c *Client) TLSConfig() *tls.Config {
	config := c.serverCheck()
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		cert := c.cert.Load()
		if cert == nil {
			return nil, errors.New("the manager has not issued a certificate yet")
		}
		if !c.opts.Clock.Now().Before(cert.Leaf.NotAfter) {
			return nil, fmt.Errorf("the certificate expired on %s and could not be renewed", cert.Leaf.NotAfter.Format(time.RFC3339))
		}
		return cert, nil
	}
	return config
}

// serverCheck verifies the manager completely: its chain, for server use, to
// the roots of this moment, and its name. Package tls cannot be told to ask for
// roots at each handshake; hence its own verification is off.
func (c *Client) serverCheck() *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		ServerName:         c.opts.ServerName,
		Time:               c.opts.Clock.Now,
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection does it, on every handshake
		VerifyConnection: func(cs tls.ConnectionState) error {
			rootsPEM, err := c.opts.Roots()
			if err != nil {
				return fmt.Errorf("read the trusted roots: %w", err)
			}
			trusted, err := decodeCerts(rootsPEM)
			if err != nil {
				return fmt.Errorf("read the trusted roots: %w", err)
			}
			verify := x509.VerifyOptions{
				// Not cs.ServerName: a caller of TLSConfig may have changed it.
				DNSName:       c.opts.ServerName,
				Roots:         x509.NewCertPool(),
				Intermediates: x509.NewCertPool(),
				CurrentTime:   c.opts.Clock.Now(),
				KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
			}
			for _, root := range trusted {
				verify.Roots.AddCert(root)
			}
			for _, cert := range cs.PeerCertificates[1:] {
				verify.Intermediates.AddCert(cert)
			}
			_, err = cs.PeerCertificates[0].Verify(verify)
			return err
		},
	}
}

// obtain has a certificate issued for a new key.
func (c *Client) obtain(ctx context.Context) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, err
	}
	out, err := c.ask(ctx, certificateRequest{
		CSR:     string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})),
		Gateway: c.opts.Gateway,
	})
	if err != nil {
		return nil, err
	}
	chain, err := decodeCerts([]byte(out.Certificate))
	if err != nil {
		return nil, fmt.Errorf("the manager's answer: %w", err)
	}
	leaf := chain[0]
	if !key.PublicKey.Equal(leaf.PublicKey) {
		return nil, errors.New("the manager's answer: the certificate is for another key")
	}
	if g, err := certificateGateway(leaf); err != nil || g != c.opts.Gateway {
		return nil, fmt.Errorf("the manager's answer: the certificate is for %v, not for %v", leaf.URIs, c.opts.Gateway)
	}
	if now := c.opts.Clock.Now(); now.Before(leaf.NotBefore) || leaf.NotAfter.Sub(now) < time.Minute {
		return nil, fmt.Errorf("the new certificate is valid from %s to %s, but here it is %s; compare the clocks of agent and manager",
			leaf.NotBefore.Format(time.RFC3339), leaf.NotAfter.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return tlsCertificate(chain, key), nil
}

// ask makes one request over a connection of its own: hours pass until the next.
func (c *Client) ask(ctx context.Context, in certificateRequest) (out certificateResponse, _ error) {
	token, err := c.opts.Token()
	if err != nil {
		return out, fmt.Errorf("read the token: %w", err)
	}
	body, err := json.Marshal(in)
	if err != nil {
		return out, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.opts.URL, bytes.NewReader(body))
	if err != nil {
		return out, err
	}
	req.Header.Set("Authorization", "Bearer "+string(bytes.TrimSpace(token)))
	req.Header.Set("Content-Type", "application/json")
	client := http.Client{
		Timeout:   attemptTimeout,
		Transport: &http.Transport{TLSClientConfig: c.serverCheck(), DisableKeepAlives: true},
		// The token is for this manager alone.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		return out, err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return out, fmt.Errorf("read the manager's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		var fault errorResponse
		_ = json.Unmarshal(answer, &fault) // whoever answered, the status is the news
		return out, fmt.Errorf("the manager answered %s: %.200s", resp.Status, fault.Error)
	}
	if err := json.Unmarshal(answer, &out); err != nil {
		return out, fmt.Errorf("the manager's answer: %w", err)
	}
	return out, nil
}
