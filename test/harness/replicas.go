package harness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"

	coordinationv1 "k8s.io/api/coordination/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Replicas are several managers, of which one leads. Each has an address of its
// own, as pods have, and agents reach them through one, as by a Service.
type Replicas struct {
	Operators []*Operator

	cluster  *Cluster
	forwards []*forward
}

// StartReplicas starts n managers, as the Deployment of config/manager does.
func (c *Cluster) StartReplicas(ctx context.Context, binaries Binaries, folder string, n int) (*Replicas, error) {
	kubeconfig, err := c.prepare(ctx, folder)
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(2)
	if err != nil {
		return nil, err
	}
	r := &Replicas{cluster: c}
	for _, port := range ports {
		f, err := newForward(port)
		if err != nil {
			r.Stop()
			return nil, err
		}
		r.forwards = append(r.forwards, f)
	}
	for i := range n {
		operator, err := startManager(binaries, folder, name(i), kubeconfig, "--leader-elect",
			"--pod-name", name(i), "--pod-ip", ip(i),
			"--xds-bind-address", net.JoinHostPort(ip(i), ports[0]), "--certificate-bind-address", net.JoinHostPort(ip(i), ports[1]))
		if err != nil {
			r.Stop()
			return nil, err
		}
		r.Operators = append(r.Operators, operator)
	}
	return r, nil
}

func name(replica int) string { return fmt.Sprintf("manager-%d", replica) }
func ip(replica int) string   { return fmt.Sprintf("127.0.0.%d", 2+replica) }

// Serve has new connections go to these replicas, in turn. Those that there are
// stay, as with a Service.
func (r *Replicas) Serve(replicas ...int) {
	for _, f := range r.forwards {
		f.mu.Lock()
		f.to = nil
		for _, replica := range replicas {
			f.to = append(f.to, net.JoinHostPort(ip(replica), f.port))
		}
		f.mu.Unlock()
	}
}

// Leader is the replica that holds the lease.
func (r *Replicas) Leader(ctx context.Context) (int, error) {
	var lease coordinationv1.Lease
	if err := r.cluster.Client.Get(ctx, client.ObjectKey{Namespace: SystemNamespace, Name: "meshroute-manager"}, &lease); err != nil {
		return 0, err
	}
	for i := range r.Operators {
		if holder := lease.Spec.HolderIdentity; holder != nil && strings.HasPrefix(*holder, name(i)+"_") {
			return i, nil
		}
	}
	return 0, errors.New("nobody leads")
}

// Stop ends all.
func (r *Replicas) Stop() {
	for _, operator := range r.Operators {
		operator.Stop()
	}
	for _, f := range r.forwards {
		_ = f.listener.Close()
	}
}

// forward is a port that leads to others.
type forward struct {
	port     string
	listener net.Listener

	mu   sync.Mutex
	to   []string
	next int
}

func newForward(port string) (*forward, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		return nil, err
	}
	f := &forward{port: port, listener: listener}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go f.serve(conn)
		}
	}()
	return f, nil
}

func (f *forward) serve(from net.Conn) {
	defer func() { _ = from.Close() }()
	f.mu.Lock()
	if len(f.to) == 0 {
		f.mu.Unlock()
		return
	}
	f.next++
	address := f.to[f.next%len(f.to)]
	f.mu.Unlock()
	to, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer func() { _ = to.Close() }()
	ended := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{from, to}, {to, from}} {
		go func() {
			_, _ = io.Copy(way[0], way[1])
			ended <- struct{}{}
		}()
	}
	<-ended
}
