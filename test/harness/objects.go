package harness

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
)

// Zone is where all pods of gateways are.
const Zone = "zone-a"

// Service is one of port 80, named http.
func Service(namespace, name string) *corev1.Service {
	return &corev1.Service{
		Namespace: namespace, Name: name,
		Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
	}
}

// Endpoints is an EndpointSlice of a Service with ready endpoints.
func Endpoints(namespace, service string, backends ...*Backend) *discoveryv1.EndpointSlice {
	slice := &discoveryv1.EndpointSlice{
		Namespace: namespace, Name: service + "-1",
		Labels:      map[string]string{discoveryv1.LabelServiceName: service},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: new("http"), Port: new(int32(8080)), Protocol: new(corev1.ProtocolTCP)}},
		Endpoints:   []discoveryv1.Endpoint{},
	}
	for _, backend := range backends {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{backend.Address},
			Conditions: discoveryv1.EndpointConditions{Ready: new(true)},
		})
	}
	return slice
}

// Gateway listens on a port, for routes of all namespaces.
func Gateway(namespace, name, class string, port int) *gatewayv1.Gateway {
	return &gatewayv1.Gateway{
		Namespace: namespace, Name: name,
		Spec: gatewayv1.GatewaySpec{
			GatewayClassName: gatewayv1.ObjectName(class),
			Listeners: []gatewayv1.Listener{{
				Name: "http", Protocol: gatewayv1.HTTPProtocolType, Port: gatewayv1.PortNumber(port),
				AllowedRoutes: &gatewayv1.AllowedRoutes{
					Namespaces: &gatewayv1.RouteNamespaces{From: new(gatewayv1.NamespacesFromAll)},
				},
			}},
		},
	}
}

// GatewayClass is one of this operator.
func GatewayClass(name string) *gatewayv1.GatewayClass {
	return &gatewayv1.GatewayClass{
		Name: name,
		Spec: gatewayv1.GatewayClassSpec{ControllerName: v1alpha1.ControllerName},
	}
}

// Route sends everything of a hostname to a Service's port 80.
func Route(namespace, name, hostname, service string, parents ...gatewayv1.ParentReference) *v1alpha1.ServiceRoute {
	return &v1alpha1.ServiceRoute{
		Namespace: namespace, Name: name,
		Spec: v1alpha1.ServiceRouteSpec{
			ParentRefs: parents,
			Hostnames:  []gatewayv1.Hostname{gatewayv1.Hostname(hostname)},
			Rules: []v1alpha1.ServiceRouteRule{{
				Name:     "all",
				Backends: []v1alpha1.Backend{{Name: gatewayv1.ObjectName(service), Port: intstr.FromInt32(80)}},
			}},
		},
	}
}

// Parent refers to a Gateway.
func Parent(namespace, name string) gatewayv1.ParentReference {
	return gatewayv1.ParentReference{Namespace: new(gatewayv1.Namespace(namespace)), Name: gatewayv1.ObjectName(name)}
}
