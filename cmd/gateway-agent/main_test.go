package main

import (
	"encoding/json"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"meshroute.io/meshroute/internal/model"
	"meshroute.io/meshroute/internal/workload"
)

// What pods give the agent has to be what it takes, and all that it needs.
func TestPodsGiveFlagsThatExist(t *testing.T) {
	gw := model.Gateway{
		Namespace: "shop", Name: "edge", Class: "meshroute", Infrastructure: &model.Infrastructure{},
	}
	encoded, err := json.Marshal(workload.Deployment(gw, workload.Options{
		XDSAddress: "manager:1", CertificateURL: "https://manager:2", ServerName: "manager",
	}, "").Spec.Template.Spec)
	if err != nil {
		t.Fatal(err)
	}
	var pod corev1.PodSpec
	if err := json.Unmarshal(encoded, &pod); err != nil {
		t.Fatal(err)
	}
	for i := range pod.Containers {
		if pod.Containers[i].Name != "agent" {
			continue
		}
		command := command()
		if err := command.ParseFlags(pod.Containers[i].Args); err != nil {
			t.Error(err)
		}
		if err := command.ValidateRequiredFlags(); err != nil {
			t.Error(err)
		}
		if rest := command.Flags().Args(); len(rest) > 0 {
			t.Errorf("arguments that are no flags: %q", rest)
		}
		if got := command.Flag("gateway").Value.String(); got != "shop/edge" {
			t.Errorf("--gateway is %q", got)
		}
		return
	}
	t.Fatal("the pod has no agent")
}

func TestGatewayMustHaveANamespace(t *testing.T) {
	command := command()
	command.SetArgs([]string{
		"--gateway", "edge", "--pod", "p", "--xds-address", "a", "--certificate-url", "b", "--server-name", "c", "--roots", "d",
		"--token", "e", "--state-dir", "f", "--xds-socket", "g", "--pages-socket", "h", "--admin-socket", "i",
	})
	if err := command.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), "namespace/name") {
		t.Errorf("--gateway edge: %v", err)
	}
}

// People need not say where Envoy's admin interface is.
func TestAdminLooksWhereItIsInPods(t *testing.T) {
	if adminSocket != workload.AdminSocket {
		t.Errorf("looks at %s, but pods have it at %s", adminSocket, workload.AdminSocket)
	}
}
