// Command pause is the process that keeps a pod's namespaces: it waits until it
// is told to end. As the first process of a pod whose containers share their
// process namespace, it also buries those that nobody waits for.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGINT, syscall.SIGTERM)
	died := make(chan os.Signal, 1)
	signal.Notify(died, syscall.SIGCHLD)
	for {
		select {
		case <-end:
			return
		case <-died:
			for {
				if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err != syscall.EINTR && (err != nil || pid <= 0) {
					break
				}
			}
		}
	}
}
