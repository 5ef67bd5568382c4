package harness

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Net is a network namespace for backends, joined to the host by a pair of
// virtual interfaces. All addresses of 10.<n>.64.0/18 are its own.
type Net struct {
	name  string
	octet int
	next  atomic.Int32
}

// nets counts those that this process has made.
var nets atomic.Int32

// NewNet makes a network namespace. It needs root.
func NewNet() (*Net, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("network namespaces need root: run as root, or `sudo -E make integration`")
	}
	// Of several processes each has its own, and may have a few.
	number := int(nets.Add(1)) - 1
	octet := 64 + (4*os.Getpid()+number)%128
	host := fmt.Sprintf("mr%d-%d", os.Getpid(), number)
	n := &Net{name: fmt.Sprintf("meshroute-%d-%d", os.Getpid(), number), octet: octet}
	n.next.Store(1)
	for _, line := range []string{
		"ip netns add " + n.name,
		"ip link add " + host + " type veth peer name eth0 netns " + n.name,
		fmt.Sprintf("ip addr add 10.%d.0.1/16 dev %s", octet, host),
		"ip link set " + host + " up",
		fmt.Sprintf("ip -n %s addr add 10.%d.0.2/16 dev eth0", n.name, octet),
		"ip -n " + n.name + " link set eth0 up",
		"ip -n " + n.name + " link set lo up",
		// Every address of the range is local to the namespace without being
		// added one by one.
		fmt.Sprintf("ip -n %s route add local 10.%d.64.0/18 dev lo", n.name, octet),
	} {
		if err := command(line); err != nil {
			_ = n.Close()
			return nil, err
		}
	}
	return n, nil
}

func command(line string) error {
	words := strings.Fields(line)
	if output, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", line, err, output)
	}
	return nil
}

// Close removes the namespace, and with it the interfaces.
func (n *Net) Close() error { return command("ip netns delete " + n.name) }

// Unplug makes the namespace vanish as a node does whose cable is pulled:
// nothing that is in it answers any more, and nothing says so.
func (n *Net) Unplug() error {
	return command(fmt.Sprintf("ip -n %s route add blackhole 10.%d.0.1/32", n.name, n.octet))
}

// Plug undoes Unplug.
func (n *Net) Plug() error {
	return command(fmt.Sprintf("ip -n %s route delete blackhole 10.%d.0.1/32", n.name, n.octet))
}

// Host is the address of the namespace itself.
func (n *Net) Host() string { return fmt.Sprintf("10.%d.0.2", n.octet) }

// Address returns an address of the namespace that was not handed out before.
func (n *Net) Address() string {
	next := n.next.Add(1)
	return fmt.Sprintf("10.%d.%d.%d", n.octet, 64+next/250, 1+next%250)
}

// Listen listens inside the namespace. A socket belongs to the namespace in
// which it was made, whoever uses it afterwards.
func (n *Net) Listen(address string) (net.Listener, error) {
	type result struct {
		listener net.Listener
		err      error
	}
	results := make(chan result)
	go func() {
		// The thread is not given back: it ends with this goroutine.
		runtime.LockOSThread()
		namespace, err := os.Open("/run/netns/" + n.name)
		if err != nil {
			results <- result{nil, err}
			return
		}
		defer func() { _ = namespace.Close() }()
		if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err != nil {
			results <- result{nil, fmt.Errorf("enter the network namespace: %w", err)}
			return
		}
		listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", address)
		results <- result{listener, err}
	}()
	r := <-results
	return r.listener, r.err
}

// Backend is an HTTP server in the namespace.
type Backend struct {
	Name    string
	Address string
	Port    int32
	// Connections and Requests that it has got.
	Connections, Requests atomic.Int64

	server *http.Server
}

// Backend starts a server that answers by handler, or with its name and the
// request where handler is nil.
func (n *Net) Backend(name string, handler http.Handler) (*Backend, error) {
	b := &Backend{Name: name, Address: n.Address(), Port: 8080}
	if handler == nil {
		handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Backend", name)
			_, _ = fmt.Fprintf(w, "%s %s", r.Method, r.URL.RequestURI())
		})
	}
	listener, err := n.Listen(fmt.Sprintf("%s:%d", b.Address, b.Port))
	if err != nil {
		return nil, err
	}
	b.server = &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b.Requests.Add(1)
			handler.ServeHTTP(w, r)
		}),
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				b.Connections.Add(1)
			}
		},
	}
	go func() { _ = b.server.Serve(listener) }()
	return b, nil
}

// Close ends the server and its connections.
func (b *Backend) Close() { _ = b.server.Close() }
