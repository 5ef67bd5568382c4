package model

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/gateway-api/pkg/consts"
)

func TestSupportedVersion(t *testing.T) {
	t.Parallel()
	for installed, want := range map[string]string{
		consts.BundleVersion: "",
		"v1.5.0":             "",
		"v1.6.0-rc.1":        "",
		"v1.4.1":             "update its CRDs",
		"v0.8.1":             "update its CRDs",
		"v1.99.0":            "update meshroute",
		"v2.0.0":             "update meshroute",
		"unknown":            "do not tell their version",
		"main":               "do not tell their version",
	} {
		got := supportedVersion(installed)
		if (got.Status == metav1.ConditionTrue) != (want == "") || !strings.Contains(got.Message, want) {
			t.Errorf("%q: %s %s", installed, got.Status, got.Message)
		}
		if !strings.Contains(got.Message, "v1.5 to v1.7 are supported") {
			t.Errorf("%q: %s: which versions are supported is not told", installed, got.Message)
		}
	}
}
