package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	ctrl "sigs.k8s.io/controller-runtime"

	"meshroute.io/meshroute/internal/identity"
	"meshroute.io/meshroute/internal/report"
	"meshroute.io/meshroute/internal/standalone"
	"meshroute.io/meshroute/internal/xds"
)

func standaloneCommand() *cobra.Command {
	options := standalone.Options{Out: os.Stdout}
	command := newCommand("standalone", "Runs gateways as files say, without a cluster", func(command *cobra.Command) error {
		return runStandalone(command.Context(), options)
	})
	command.Long = `Runs gateways as files say, without a cluster.

Reads Gateways, ServiceRoutes, Services, EndpointSlices, GatewayConfigs, GatewayClasses, ReferenceGrants and Namespaces
from the YAML files below a folder, follows their changes, and runs an Envoy with its agent for each Gateway. A file that
is wrong is reported; what it held before, and all other files, stay in use. The table of MeshRoutes is printed whenever
it changes. Kinds that only a cluster can use are skipped.`
	flags := command.Flags()
	flags.StringVarP(&options.Folder, "filename", "f", "", "folder of YAML files")
	flags.StringVar(&options.StateDir, "state-dir", "", "folder for sockets, logs and last good configurations (default $XDG_STATE_HOME/meshroute or ~/.local/state/meshroute)")
	flags.StringVar(&options.Envoy, "envoy", "", "the Envoy to run (default $ENVOY, or envoy from the PATH)")
	flags.StringVar(&options.Agent, "agent", "", "the gateway-agent to run (default: the one beside this program)")
	_ = command.MarkFlagRequired("filename")
	return command
}

func runStandalone(ctx context.Context, options standalone.Options) error {
	if err := fillIn(&options); err != nil {
		return err
	}
	options.Log = ctrl.Log.WithName("standalone")
	options.Identify = peer
	options.Serve = func(ctx context.Context, xdsListener, certificates net.Listener, server *xds.Server,
		authority *identity.Authority, verify standalone.TokenCheck,
	) error {
		group, ctx := errgroup.WithContext(ctx)
		group.Go(func() error {
			return serveXDS(ctx, xdsListener, server, report.Alone(xdsListener.Addr().String()), authority, standalone.ServerNames())
		})
		group.Go(func() error {
			return serveCertificates(ctx, certificates, authority, verify, standalone.ServerNames())
		})
		return group.Wait()
	}
	return standalone.Run(ctx, options)
}

// fillIn finds the programs and the state folder.
func fillIn(options *standalone.Options) error {
	if options.StateDir == "" {
		state := os.Getenv("XDG_STATE_HOME")
		if state == "" {
			home, err := os.UserHomeDir()
			if err != nil {
				return fmt.Errorf("find a state folder (or give --state-dir): %w", err)
			}
			state = filepath.Join(home, ".local", "state")
		}
		options.StateDir = filepath.Join(state, "meshroute")
	}
	var err error
	if options.StateDir, err = filepath.Abs(options.StateDir); err != nil {
		return err
	}
	if options.Envoy, err = exec.LookPath(cmp.Or(options.Envoy, os.Getenv("ENVOY"), "envoy")); err != nil {
		return fmt.Errorf("find Envoy: %w: name it by --envoy, or get one with hack/envoy.sh", err)
	}
	if options.Agent == "" {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		options.Agent = filepath.Join(filepath.Dir(self), "gateway-agent")
	}
	if _, err := os.Stat(options.Agent); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("find the agent: %s does not exist: build it (make build) or name it by --agent", options.Agent)
	}
	return nil
}
