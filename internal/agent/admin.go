package agent

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// admin is Envoy's admin interface on its Unix socket.
type admin struct{ client *http.Client }

func newAdmin(socket string) *admin {
	return &admin{client: &http.Client{
		Timeout: 5 * time.Second,
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var dialer net.Dialer
				return dialer.DialContext(ctx, "unix", socket)
			},
			MaxIdleConns: 2,
		},
	}}
}

// maxAdminAnswer bounds what is read; the pages asked for are far smaller.
const maxAdminAnswer = 1 << 20

// Show writes a page of the admin interface of an Envoy, which serves it on the
// Unix socket, to out: for people who look into a gateway pod. Envoy lets no GET
// change anything.
func Show(ctx context.Context, socket, path string, out io.Writer) error {
	response, err := newAdmin(socket).request(ctx, http.MethodGet, path)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if _, err := io.Copy(out, response.Body); err != nil {
		return fmt.Errorf("read from Envoy's admin interface: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("admin interface of Envoy answered %s", response.Status)
	}
	return nil
}

func (a *admin) request(ctx context.Context, method, path string) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, "http://envoy"+path, nil)
	if err != nil {
		return nil, err
	}
	response, err := a.client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask Envoy's admin interface: %w", err)
	}
	return response, nil
}

// ask returns the text of a page, which Envoy wants to be asked for by POST where
// that changes something; an error where its status is not 200.
func (a *admin) ask(ctx context.Context, method, path string) (string, error) {
	response, err := a.request(ctx, method, path)
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAdminAnswer))
	if err != nil {
		return "", fmt.Errorf("read from Envoy's admin interface: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("admin interface of Envoy answered %s: %s", response.Status, strings.TrimSpace(string(body)))
	}
	return string(body), nil
}
