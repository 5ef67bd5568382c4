package model

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/version"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/gateway-api/pkg/consts"
)

// Versions of Gateway API that have everything that this operator uses: the
// oldest serves ReferenceGrant v1, and the newest is the one it is built with.
var (
	oldestGatewayAPI = version.MustParseSemantic("v1.5.0")
	newestGatewayAPI = version.MustParseSemantic(consts.BundleVersion)
)

// supportedVersion judges the version of Gateway API that is installed, as its
// CRDs tell it. Any version that can be read at all is served as far as it goes.
func supportedVersion(installed string) metav1.Condition {
	kind := string(gatewayv1.GatewayClassConditionStatusSupportedVersion)
	window := fmt.Sprintf("v%d.%d to v%d.%d are supported",
		oldestGatewayAPI.Major(), oldestGatewayAPI.Minor(), newestGatewayAPI.Major(), newestGatewayAPI.Minor())
	unsupported := func(message string) metav1.Condition {
		return condition(kind, metav1.ConditionFalse, string(gatewayv1.GatewayClassReasonUnsupportedVersion), message)
	}
	parsed, err := version.ParseSemantic(installed)
	switch {
	case err != nil:
		return unsupported(fmt.Sprintf(
			"the CRDs of Gateway API do not tell their version by the annotation %s (it says %q); %s: install a release of it",
			consts.BundleVersionAnnotation, installed, window))
	case parsed.LessThan(oldestGatewayAPI):
		return unsupported(fmt.Sprintf(
			"Gateway API %s is installed, and %s: fields that it lacks are dropped by the API server; update its CRDs", installed, window))
	case parsed.Major() > newestGatewayAPI.Major() || parsed.Minor() > newestGatewayAPI.Minor():
		return unsupported(fmt.Sprintf(
			"Gateway API %s is installed, and %s: what is new in it has no effect; update meshroute", installed, window))
	default:
		return condition(kind, metav1.ConditionTrue, string(gatewayv1.GatewayClassReasonSupportedVersion),
			fmt.Sprintf("Gateway API %s is installed, and %s", installed, window))
	}
}
