package harness

import (
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
)

// Balancer is what a Service is to clients: each new connection goes to one of
// its pods, and stays there.
type Balancer struct {
	// Port it listens on, on 127.0.0.1.
	Port int

	listener net.Listener
	mu       sync.Mutex
	pods     []string
	next     int
}

// StartBalancer starts one over addresses, each host:port.
func StartBalancer(pods ...string) (*Balancer, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start a balancer: %w", err)
	}
	b := &Balancer{Port: listener.Addr().(*net.TCPAddr).Port, listener: listener, pods: pods}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go b.pass(conn.(*net.TCPConn))
		}
	}()
	return b, nil
}

// Remove gives a pod no new connections.
func (b *Balancer) Remove(pod string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pods = slices.DeleteFunc(b.pods, func(other string) bool { return other == pod })
}

// Close gives nobody new connections.
func (b *Balancer) Close() error { return b.listener.Close() }

func (b *Balancer) pass(client *net.TCPConn) {
	defer func() { _ = client.Close() }()
	b.mu.Lock()
	b.next++
	address := b.pods[b.next%len(b.pods)]
	b.mu.Unlock()
	dialled, err := net.Dial("tcp", address)
	if err != nil {
		return // as a refused connection
	}
	pod := dialled.(*net.TCPConn)
	defer func() { _ = pod.Close() }()
	var both sync.WaitGroup
	for _, way := range [][2]*net.TCPConn{{client, pod}, {pod, client}} {
		both.Go(func() {
			_, _ = io.Copy(way[1], way[0])
			_ = way[1].CloseWrite()
		})
	}
	both.Wait()
}
