package harness

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// Process is a program that is kept running, as a kubelet keeps a container
// running, until it is stopped.
type Process struct {
	name string
	path string
	args []string
	log  string

	mu      sync.Mutex
	command *exec.Cmd
	ended   chan struct{}
	stopped bool
	held    bool
}

// StartProcess starts a program whose output is appended to the file log.
func StartProcess(name, log, path string, args ...string) (*Process, error) {
	p := &Process{name: name, path: path, args: args, log: log}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p, p.start()
}

func (p *Process) start() error {
	output, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	command := exec.Command(p.path, p.args...)
	command.Stdout, command.Stderr = output, output
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := command.Start(); err != nil {
		_ = output.Close()
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	p.command, p.ended = command, make(chan struct{})
	go func(ended chan struct{}) {
		_ = command.Wait()
		_ = output.Close()
		close(ended)
		p.mu.Lock()
		defer p.mu.Unlock()
		if !p.stopped && !p.held && p.command == command {
			_ = p.start()
		}
	}(p.ended)
	return nil
}

// Kill ends the program at once; it is started again.
func (p *Process) Kill() { p.end(syscall.SIGKILL, false) }

// Hold ends the program at once, until Resume.
func (p *Process) Hold() { p.end(syscall.SIGKILL, true) }

// Resume starts a program that was held.
func (p *Process) Resume() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.held {
		return nil
	}
	p.held = false
	return p.start()
}

func (p *Process) end(signal syscall.Signal, hold bool) {
	p.mu.Lock()
	p.held = hold
	command, ended := p.command, p.ended
	p.mu.Unlock()
	_ = command.Process.Signal(signal)
	<-ended
}

// Stop ends the program for good.
func (p *Process) Stop() { p.StopWithin(10 * time.Second) }

// StopWithin ends the program for good, and kills it when it has not ended in
// time.
func (p *Process) StopWithin(limit time.Duration) {
	p.mu.Lock()
	p.stopped = true
	command, ended, held := p.command, p.ended, p.held
	p.mu.Unlock()
	if held {
		return
	}
	_ = command.Process.Signal(syscall.SIGTERM)
	select {
	case <-ended:
	case <-time.After(limit):
		_ = command.Process.Kill()
		<-ended
	}
}

// Name of the program, as it was started.
func (p *Process) Name() string { return p.name }

// PID is that of the running program.
func (p *Process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.command.Process.Pid
}

// Log is what the program has printed so far.
func (p *Process) Log() string {
	content, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(content)
}

// AwaitOK waits until a URL answers with 200.
func AwaitOK(ctx context.Context, url string) error {
	client := &http.Client{Timeout: 2 * time.Second}
	for {
		response, err := client.Get(url)
		if err == nil {
			_ = response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
			err = fmt.Errorf("%s", response.Status)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", url, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
