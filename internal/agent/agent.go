// Package agent is what runs beside Envoy in a gateway pod. It gets the
// gateway's configuration from a manager and hands it to Envoy (the relay of
// package xds), reports to the manager that leads, renders the pages that Envoy
// cannot, and tells Kubernetes whether the pod is ready. It needs no manager to
// go on: a relay that cannot reach one serves its last good configuration, across
// restarts, too.
package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"k8s.io/utils/clock"

	"meshroute.io/meshroute/internal/envoy"
	"meshroute.io/meshroute/internal/identity"
	"meshroute.io/meshroute/internal/report"
	"meshroute.io/meshroute/internal/report/reportv1"
	"meshroute.io/meshroute/internal/xds"
)

// Options say which gateway an agent belongs to and where it finds its
// neighbours. All are required but SecretsDir, ProbeAddress and ForbiddenPort.
type Options struct {
	// Gateway and pod that the agent belongs to.
	Gateway identity.Gateway
	// XDSAddress (host:port) and CertificateURL (https://host:port) are the
	// managers', ServerName is the name in their certificates.
	XDSAddress, CertificateURL, ServerName string
	// RootsFile holds the certificates that managers' are checked against,
	// TokenFile the token that proves who the agent is. Both may be replaced
	// at any time.
	RootsFile, TokenFile string
	// StateDir keeps the last good configuration, all but its secrets.
	StateDir string
	// SecretsDir keeps the secrets of it. It has to be on a file system in
	// memory; where empty they are not kept.
	SecretsDir string
	// XDSSocket and PagesSocket are Unix sockets that the agent serves to
	// Envoy; AdminSocket is the one that Envoy serves.
	XDSSocket, PagesSocket, AdminSocket string
	// ProbeAddress is where /livez, /readyz and /drained are served; none where
	// empty.
	ProbeAddress string
	// DrainTimeout is how long clients have to go when the pod ends; 0: none.
	DrainTimeout time.Duration
	// ForbiddenPort is a port of the managers that the network policy of this pod
	// does not let through: whether it is reached tells whether policies are
	// enforced. 0: nobody wants to know.
	ForbiddenPort int

	// AwaitReach has endpoints that are new tried before Envoy gets them: between
	// it and them stand network policies, which take effect in a time of their own.
	AwaitReach bool

	Log logr.Logger
}

// Run runs an agent until ctx ends and, where the pod ends with it, its clients
// are gone; or until something fails that no retry can mend: an address in use,
// a folder that cannot be written.
func Run(ctx context.Context, options Options) error {
	client, err := identity.NewClient(identity.ClientOptions{
		URL:        options.CertificateURL,
		Roots:      func() ([]byte, error) { return os.ReadFile(options.RootsFile) },
		Token:      func() ([]byte, error) { return os.ReadFile(options.TokenFile) },
		Gateway:    options.Gateway,
		ServerName: options.ServerName,
		Clock:      clock.RealClock{},
		Log:        options.Log.WithName("identity"),
	})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(options.StateDir, 0o700); err != nil {
		return fmt.Errorf("make the folder for the last good configuration: %w", err)
	}
	secretStore := ""
	if options.SecretsDir != "" {
		if err := os.MkdirAll(options.SecretsDir, 0o700); err != nil {
			return fmt.Errorf("make the folder for secrets: %w", err)
		}
		secretStore = filepath.Join(options.SecretsDir, "last-good.pb")
	}
	dial := func(ctx context.Context, address string) (*grpc.ClientConn, error) {
		select {
		case <-client.Ready():
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		return grpc.NewClient(address,
			append(xds.DialOptions(), grpc.WithTransportCredentials(credentials.NewTLS(client.TLSConfig())))...)
	}
	admin := newAdmin(options.AdminSocket)
	var relay *xds.Relay
	var reporter *report.Reporter
	healthPath := filepath.Join(filepath.Dir(options.AdminSocket), healthLogFile)
	health := newHealthLog(healthPath, admin, func(cluster string) map[netip.AddrPort]bool { return relay.Endpoints(cluster) }, func() { reporter.Ring() }, options.Log.WithName("health"))
	reporter = report.NewReporter(report.ReporterOptions{
		Dial:      dial,
		Progress:  func() []*reportv1.TypeState { return relay.Progress() },
		Unhealthy: health.Unhealthy,
		Log:       options.Log.WithName("reporter"),
	})
	relay = xds.NewRelay(xds.RelayOptions{
		Node:        &corev3.Node{Id: options.Gateway.Pod, Cluster: options.Gateway.Namespace + "/" + options.Gateway.Name},
		Dial:        func(ctx context.Context) (*grpc.ClientConn, error) { return dial(ctx, options.XDSAddress) },
		Beside:      reporter.Follow,
		OnProgress:  reporter.Ring,
		Reach:       reach(options.AwaitReach),
		Store:       filepath.Join(options.StateDir, "last-good.pb"),
		SecretStore: secretStore,
		HealthLog:   healthPath,
		Log:         options.Log.WithName("relay"),
	})
	drain := newDrain(options.DrainTimeout, admin, reporter.SetDraining, options.Log.WithName("drain"))

	xdsListener, err := listenUnix(options.XDSSocket)
	if err != nil {
		return err
	}
	pagesListener, err := listenUnix(options.PagesSocket)
	if err != nil {
		return err
	}
	xdsServer := grpc.NewServer(xds.LocalServerOptions()...)
	relay.Register(xdsServer)
	pages := http.NewServeMux()
	pages.Handle(envoy.StubStatusPath, newStubStatus(admin, clock.RealClock{}))

	// What the agent does goes on while the pod drains.
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, work := errgroup.WithContext(work)
	group.Go(func() error { return client.Run(work) })
	group.Go(func() error { return relay.Run(work) })
	group.Go(func() error { return reporter.Run(work) })
	group.Go(func() error { return health.run(work) })
	group.Go(func() error { return xdsServer.Serve(xdsListener) })
	if options.ForbiddenPort != 0 {
		verify := verifier{
			leader: reporter.Leader, forbidden: options.ForbiddenPort,
			connect: dialOnce, found: reporter.SetNetworkPolicy, clock: clock.RealClock{},
		}
		group.Go(func() error { return verify.run(work) })
	}
	serveHTTP(work, group, pagesListener, pages)
	if options.ProbeAddress != "" {
		listener, err := net.Listen("tcp", options.ProbeAddress)
		if err != nil {
			return fmt.Errorf("serve probes: %w", err)
		}
		serveHTTP(work, group, listener, probes(func() bool { return relay.Status().Applied }, drain, admin))
	}
	group.Go(func() error {
		select {
		case <-ctx.Done():
			drain.run(work)
			if drain.draining.Load() {
				drain.envoyEnded(work)
			}
		case <-work.Done():
		}
		stop()
		return nil
	})
	group.Go(func() error {
		<-work.Done()
		xdsServer.Stop() // Envoy keeps what it has and looks for the next agent
		return nil
	})
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// listenUnix serves a Unix socket in the place of one that an agent before may
// have left behind. Only this user may connect.
func listenUnix(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove the socket of an earlier agent: %w", err)
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("serve a Unix socket (its path may have at most 107 bytes): %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, fmt.Errorf("protect the socket: %w", err)
	}
	return listener, nil
}

func serveHTTP(ctx context.Context, group *errgroup.Group, listener net.Listener, handler http.Handler) {
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute}
	group.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil // closed below
	})
	group.Go(func() error {
		<-ctx.Done()
		return server.Close()
	})
}

// probes answers Kubernetes: alive is who answers at all; ready is a pod whose
// Envoy is live and has listeners and routes, as applied tells, and that does
// not drain.
func probes(applied func() bool, drain *drain, admin *admin) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ok")
	})
	mux.Handle("GET /drained", drain)
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, r *http.Request) {
		if drain.draining.Load() {
			http.Error(w, "the pod ends: clients are asked to go elsewhere", http.StatusServiceUnavailable)
			return
		}
		if !applied() {
			http.Error(w, "Envoy has not acknowledged a configuration yet", http.StatusServiceUnavailable)
			return
		}
		if _, err := admin.ask(r.Context(), http.MethodGet, "/ready"); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return mux
}
