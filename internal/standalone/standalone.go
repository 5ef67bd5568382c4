// Package standalone runs gateways without a cluster: objects come from YAML
// files, Envoy and agent are processes of this host, and the table of
// MeshRoutes goes to the terminal. Everything between is the operator's own:
// schemas, model, Envoy configuration, xDS over mutual TLS, relay.
package standalone

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/go-logr/logr"
	discoveryv1 "k8s.io/api/discovery/v1"

	"meshroute.io/meshroute/internal/dataplane"
	"meshroute.io/meshroute/internal/envoy"
	"meshroute.io/meshroute/internal/identity"
	"meshroute.io/meshroute/internal/model"
	"meshroute.io/meshroute/internal/xds"
)

// Options of Run. All are required.
type Options struct {
	// Folder of YAML files, read with everything below it.
	Folder string
	// StateDir holds sockets, logs and the last good configuration of each
	// gateway.
	StateDir string
	// Envoy and Agent are the programs to run.
	Envoy, Agent string
	// Identify tells which gateway pod is at the other end of an xDS stream.
	Identify func(context.Context) (xds.Peer, error)
	// Serve serves xDS and certificates to agents on the listeners until ctx
	// ends.
	Serve func(ctx context.Context, xds, certificates net.Listener, server *xds.Server, authority *identity.Authority, verify TokenCheck) error
	// Out is where the table goes, and problems with files.
	Out io.Writer
	Log logr.Logger
}

// TokenCheck judges the token of an agent that claims to be of a gateway.
type TokenCheck = func(ctx context.Context, token string, claimed identity.Gateway) error

// changeDelay is how long files have to be quiet before they are read:
// editors write in several steps.
const changeDelay = 50 * time.Millisecond

// Run runs gateways until ctx ends.
func Run(ctx context.Context, options Options) error {
	files, err := newSource(options.Folder)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(options.StateDir, 0o700); err != nil {
		return fmt.Errorf("make the state folder: %w", err)
	}
	lock, err := lockFile(filepath.Join(options.StateDir, "lock"))
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	host, err := newHost(ctx, options)
	if err != nil {
		return err
	}
	defer host.stop()
	bell := make(chan struct{}, 1)
	server := xds.NewServer(options.Identify, options.Log.WithName("xds"))
	server.OnAcks = func(xds.Gateway) {
		select {
		case bell <- struct{}{}:
		default:
		}
	}
	plane := dataplane.New(server, nil)
	go func() {
		err := options.Serve(ctx, host.xds, host.certificates, server, host.authority, host.verify)
		if err != nil {
			cancel(fmt.Errorf("serve agents: %w", err))
		}
	}()

	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", options.Folder, err)
	}
	defer func() { _ = watcher.Close() }()

	screen := &screen{out: options.Out}
	// What is wrong with one file, folder or gateway is told, and the others go on.
	reload := func() {
		problems := watchFolders(watcher, options.Folder)
		read, err := files.read(ctx, time.Now())
		if err != nil {
			screen.problems(append(problems, fmt.Sprintf("%v (what was read before stays in use)", err)))
			return
		}
		plane.Configure(read.inputs, read.inputs.Now, func(service model.Key) []*discoveryv1.EndpointSlice { return read.slices[service] })
		for _, service := range read.inputs.Services {
			key := model.Key{Namespace: service.Namespace, Name: service.Name}
			plane.SetEndpoints(key, read.slices[key], read.inputs.Now)
		}
		problems = append(append(problems, read.problems...), host.run(plane.Result().Gateways)...)
		screen.problems(problems)
	}
	reload()
	quiet := time.NewTimer(changeDelay)
	quiet.Stop()
	// Acknowledgements come one by one; the table waits for the last.
	redraw := time.NewTimer(time.Second)
	for {
		select {
		case <-ctx.Done():
			if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
				return cause
			}
			return nil
		case <-watcher.Events:
			quiet.Reset(changeDelay)
		case err := <-watcher.Errors:
			// Events were lost: read everything.
			options.Log.Error(err, "Watching files failed for a moment")
			quiet.Reset(changeDelay)
		case <-quiet.C:
			reload()
			redraw.Reset(2 * changeDelay)
		case <-bell:
			redraw.Reset(2 * changeDelay)
		case <-redraw.C:
			if holdBack(plane, time.Now()) {
				reload()
				redraw.Reset(2 * changeDelay)
			}
			observed, recheck := plane.Observe(time.Now(), nil)
			if recheck > 0 {
				redraw.Reset(recheck + time.Second)
			}
			table, err := files.table(ctx, observed.MeshRoutes)
			if err != nil {
				return err
			}
			screen.table(table)
		}
	}
}

// holdBack takes note of which routes Envoy refuses, and tells whether that is
// news. There is nowhere to write it down: it is known as long as this runs.
func holdBack(plane *dataplane.Dataplane, now time.Time) bool {
	changes := plane.Refusals(now)
	for _, refusal := range changes.Write {
		plane.SetRefusal(refusal.Route, refusal)
	}
	for _, route := range changes.Delete {
		plane.SetRefusal(route, nil)
	}
	return len(changes.Write)+len(changes.Delete) > 0
}

// watchFolders watches a folder and those below it, and returns what could not
// be watched.
func watchFolders(watcher *fsnotify.Watcher, root string) (problems []string) {
	_ = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			return nil
		}
		if err == nil {
			err = watcher.Add(path)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			problems = append(problems, fmt.Sprintf("watch %s: %v (its changes are not followed)", path, err))
		}
		return nil
	})
	return problems
}

// screen prints what has changed.
type screen struct {
	out                    io.Writer
	lastTable, lastProblem string
}

func (s *screen) table(table string) {
	if table == s.lastTable {
		return
	}
	s.lastTable = table
	_, _ = fmt.Fprintf(s.out, "\n%s\n%s", time.Now().Format(time.TimeOnly), table)
}

func (s *screen) problems(problems []string) {
	text := strings.Join(problems, "\n")
	if text == s.lastProblem {
		return
	}
	s.lastProblem = text
	if text == "" {
		text = "all files are good"
	}
	_, _ = fmt.Fprintf(s.out, "\n%s\n", text)
}

// host runs the processes of gateways.
type host struct {
	options           Options
	ctx               context.Context //nolint:containedctx // the processes' lifetime, which is the host's
	authority         *identity.Authority
	xds, certificates net.Listener
	running           map[model.Key]*process
	tokens            sync.Map // identity.Gateway → token
}

// process is a running gateway: Envoy and its agent.
type process struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// serverName is the name in the manager's certificate.
const serverName = "localhost"

func newHost(ctx context.Context, options Options) (*host, error) {
	bundle, err := identity.NewBundle(time.Now())
	if err != nil {
		return nil, err
	}
	authority, err := identity.LoadAuthority(bundle)
	if err != nil {
		return nil, err
	}
	h := &host{options: options, ctx: ctx, authority: authority, running: map[model.Key]*process{}}
	for _, listener := range []*net.Listener{&h.xds, &h.certificates} {
		if *listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return nil, fmt.Errorf("serve agents: %w", err)
		}
	}
	return h, nil
}

// verify knows the tokens that this host has given to its agents.
func (h *host) verify(_ context.Context, token string, claimed identity.Gateway) error {
	wanted, known := h.tokens.Load(claimed)
	if !known || subtle.ConstantTimeCompare([]byte(wanted.(string)), []byte(token)) != 1 {
		return fmt.Errorf("%w: not the token of %s", identity.ErrUnauthenticated, claimed)
	}
	return nil
}

// run starts the gateways that do not run yet and stops those that should not.
// It returns what is wrong with those that cannot be started.
func (h *host) run(gateways []model.Gateway) (problems []string) {
	wanted := map[model.Key]bool{}
	for _, gw := range gateways {
		wanted[gw.Key] = true
		if h.running[gw.Key] != nil {
			continue
		}
		started, err := h.start(gw.Key)
		if err != nil {
			problems = append(problems, fmt.Sprintf("Gateway %s cannot be run: %v", gw.Key, err))
			continue
		}
		h.running[gw.Key] = started
	}
	for key, process := range h.running {
		if !wanted[key] {
			process.cancel()
			process.done.Wait()
			delete(h.running, key)
		}
	}
	return problems
}

// maxSocketPath is the longest path that Linux takes for a Unix socket.
const maxSocketPath = 107

func (h *host) start(key model.Key) (*process, error) {
	folder := filepath.Join(h.options.StateDir, key.Namespace+"_"+key.Name)
	in := func(name string) string { return filepath.Join(folder, name) }
	if longest := in("pages.sock"); len(longest) > maxSocketPath {
		return nil, fmt.Errorf("%s is too long for a Unix socket (%d of at most %d bytes): choose a shorter --state-dir", longest, len(longest), maxSocketPath)
	}
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, err
	}
	bootstrap, err := envoy.Bootstrap(envoy.BootstrapOptions{
		Gateway: key, XDSSocket: in("xds.sock"), PagesSocket: in("pages.sock"), AdminSocket: in("admin.sock"),
	})
	if err != nil {
		return nil, err
	}
	id := identity.Gateway{Namespace: key.Namespace, Name: key.Name, Pod: key.Name + "-local"}
	token := rand.Text()
	h.tokens.Store(id, token)
	for name, content := range map[string][]byte{
		"envoy.json": bootstrap, "token": []byte(token), "ca.crt": h.authority.RootsPEM(),
		"envoy.log": nil, "agent.log": nil,
	} {
		if err := os.WriteFile(in(name), content, 0o600); err != nil {
			return nil, err
		}
	}
	commands := []command{
		{name: "gateway-agent", path: h.options.Agent, log: in("agent.log"), stopTime: stopTime, args: []string{
			"--gateway", key.String(), "--pod", id.Pod,
			"--xds-address", h.xds.Addr().String(), "--certificate-url", "https://" + h.certificates.Addr().String(),
			"--server-name", serverName, "--roots", in("ca.crt"), "--token", in("token"),
			"--state-dir", in("state"), "--await-reach=false", // no network policies
			"--xds-socket", in("xds.sock"), "--pages-socket", in("pages.sock"), "--admin-socket", in("admin.sock"),
		}},
		{name: "envoy", path: h.options.Envoy, log: in("envoy.log"), stopTime: stopTime, args: []string{
			"--config-path", in("envoy.json"), "--service-node", id.Pod,
			"--use-dynamic-base-id", "--disable-hot-restart", "--log-level", "warn", "--file-flush-interval-msec", "500",
		}},
	}
	ctx, cancel := context.WithCancel(h.ctx)
	started := &process{cancel: cancel}
	for _, c := range commands {
		started.done.Go(func() { supervise(ctx, c, h.options.Log.WithValues("gateway", key.String())) })
	}
	return started, nil
}

// stop ends all processes.
func (h *host) stop() {
	for _, process := range h.running {
		process.cancel()
	}
	for _, process := range h.running {
		process.done.Wait()
	}
}

// ServerNames are the names that the manager's certificate has to have.
func ServerNames() []string { return []string{serverName} }
