// Command gateway-agent runs beside Envoy in a gateway pod: see package agent.
package main

import (
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"

	"meshroute.io/meshroute/internal/agent"
)

// version is set when a release is built.
var version = "dev"

func main() {
	if err := command().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "gateway-agent:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var (
		options agent.Options
		gateway string
	)
	command := &cobra.Command{
		Use:           "gateway-agent",
		Short:         "Configures the Envoy beside it, and answers for its pod",
		Args:          cobra.NoArgs,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(command *cobra.Command, _ []string) error {
			namespace, name, found := strings.Cut(gateway, "/")
			if !found {
				return fmt.Errorf("--gateway %q must be namespace/name", gateway)
			}
			options.Gateway.Namespace, options.Gateway.Name = namespace, name
			options.Log = logr.FromSlogHandler(slog.NewJSONHandler(os.Stderr, nil)).
				WithValues("gateway", gateway, "pod", options.Gateway.Pod)
			ctx, stop := signal.NotifyContext(command.Context(), syscall.SIGTERM, os.Interrupt)
			defer stop()
			return agent.Run(ctx, options)
		},
	}
	flags := command.Flags()
	flags.StringVar(&gateway, "gateway", "", "the Gateway that this pod belongs to, as namespace/name")
	flags.StringVar(&options.Gateway.Pod, "pod", "", "the name of this pod")
	flags.StringVar(&options.XDSAddress, "xds-address", "", "host:port where managers serve configuration")
	flags.StringVar(&options.CertificateURL, "certificate-url", "", "https://host:port where managers sign certificates")
	flags.StringVar(&options.ServerName, "server-name", "", "the name in the managers' certificates")
	flags.StringVar(&options.RootsFile, "roots", "", "file of PEM certificates that managers' are checked against")
	flags.StringVar(&options.TokenFile, "token", "", "file of the token that proves who this agent is")
	flags.StringVar(&options.StateDir, "state-dir", "", "folder that keeps the last good configuration")
	flags.StringVar(&options.SecretsDir, "secrets-dir", "", "folder in memory that keeps the secrets of the last good configuration; empty keeps none")
	flags.StringVar(&options.XDSSocket, "xds-socket", "", "Unix socket on which Envoy gets its configuration")
	flags.StringVar(&options.PagesSocket, "pages-socket", "", "Unix socket on which Envoy gets pages")
	flags.StringVar(&options.AdminSocket, "admin-socket", "", "Unix socket of Envoy's admin interface")
	flags.StringVar(&options.ProbeAddress, "probe-address", "", "host:port for /livez, /readyz and /drained")
	flags.DurationVar(&options.DrainTimeout, "drain-timeout", 0, "how long clients have to go when the pod ends; 0 cuts them off")
	flags.IntVar(&options.ForbiddenPort, "forbidden-port", 0, "port of the managers that a network policy does not let this pod reach: try whether that holds; 0 is not to")
	flags.BoolVar(&options.AwaitReach, "await-reach", true, "try to connect to endpoints that are new before Envoy gets them, and wait a moment for network policies to let this pod through")
	for _, required := range []string{
		"gateway", "pod", "xds-address", "certificate-url", "server-name", "roots", "token",
		"state-dir", "xds-socket", "pages-socket", "admin-socket",
	} {
		_ = command.MarkFlagRequired(required)
	}
	command.AddCommand(adminCommand())
	return command
}

// adminSocket is where Envoy serves its admin interface in a gateway pod.
const adminSocket = "/run/meshroute/admin.sock"

// adminCommand is for people:
//
//	kubectl exec POD -c agent -- /gateway-agent admin /clusters
func adminCommand() *cobra.Command {
	var socket string
	command := &cobra.Command{
		Use:           "admin PATH",
		Short:         "Prints a page of Envoy's admin interface, for instance /clusters or /config_dump",
		Args:          cobra.ExactArgs(1),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(command *cobra.Command, arguments []string) error {
			if !strings.HasPrefix(arguments[0], "/") {
				return fmt.Errorf("%q must be a path that begins with /", arguments[0])
			}
			return agent.Show(command.Context(), socket, arguments[0], command.OutOrStdout())
		},
	}
	command.Flags().StringVar(&socket, "admin-socket", adminSocket, "Unix socket of Envoy's admin interface")
	return command
}
