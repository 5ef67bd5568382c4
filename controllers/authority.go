package controllers

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-logr/logr"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"meshroute.io/meshroute/internal/dataplane"
	"meshroute.io/meshroute/internal/identity"
	"meshroute.io/meshroute/internal/workload"
)

// AuthoritySecret is the name of the Secret that holds the authority which
// signs agents' and managers' certificates.
const AuthoritySecret = "meshroute-ca"

// authorityCheck is how often a replica looks whether the authority is due to
// be replaced, or was replaced by another replica.
const authorityCheck = time.Minute

// Authority keeps an identity.Authority that all replicas share by a Secret.
type Authority struct {
	*identity.Authority

	client    client.Client
	secret    types.NamespacedName
	clock     clock.WithTicker
	onRenewal func()
	certs     string // those in use, to tell whether the Secret has others
}

// LoadAuthority reads the authority from its Secret in a namespace, and makes
// one where there is none. c must read from the API server, not from a cache.
// onRenewal is called whenever the authority was replaced.
func LoadAuthority(ctx context.Context, c client.Client, namespace string, clk clock.WithTicker, onRenewal func()) (*Authority, error) {
	a := &Authority{
		client: c, clock: clk, onRenewal: onRenewal,
		secret: types.NamespacedName{Namespace: namespace, Name: AuthoritySecret},
	}
	bundle, err := a.read(ctx)
	if err != nil {
		return nil, err
	}
	a.Authority, err = identity.LoadAuthority(bundle)
	if err != nil {
		return nil, fmt.Errorf("authority in Secret %s: %w", a.secret, err)
	}
	a.certs = string(bundle.CertPEM)
	return a, nil
}

// read returns the bundle of the Secret, made or replaced where that is due.
func (a *Authority) read(ctx context.Context) (identity.Bundle, error) {
	var secret corev1.Secret
	err := a.client.Get(ctx, a.secret, &secret)
	if apierrors.IsNotFound(err) {
		bundle, err := identity.NewBundle(a.clock.Now())
		if err != nil {
			return identity.Bundle{}, err
		}
		err = a.client.Create(ctx, &corev1.Secret{
			Namespace: a.secret.Namespace, Name: a.secret.Name,
			Type: corev1.SecretTypeTLS,
			Data: secretData(bundle),
		})
		if apierrors.IsAlreadyExists(err) {
			return a.read(ctx) // another replica was faster
		}
		if err != nil {
			return identity.Bundle{}, fmt.Errorf("create Secret %s: %w", a.secret, err)
		}
		return bundle, nil
	}
	if err != nil {
		return identity.Bundle{}, fmt.Errorf("read Secret %s: %w", a.secret, err)
	}
	bundle := identity.Bundle{CertPEM: secret.Data[corev1.TLSCertKey], KeyPEM: secret.Data[corev1.TLSPrivateKeyKey]}
	renewed, changed, err := identity.RotateIfDue(bundle, a.clock.Now())
	if err != nil {
		return identity.Bundle{}, fmt.Errorf("authority in Secret %s: %w", a.secret, err)
	}
	if !changed {
		return bundle, nil
	}
	secret.Data = secretData(renewed)
	if err := a.client.Update(ctx, &secret); err != nil {
		if apierrors.IsConflict(err) {
			return a.read(ctx) // another replica was faster
		}
		return identity.Bundle{}, fmt.Errorf("replace the authority in Secret %s: %w", a.secret, err)
	}
	return renewed, nil
}

func secretData(bundle identity.Bundle) map[string][]byte {
	return map[string][]byte{corev1.TLSCertKey: bundle.CertPEM, corev1.TLSPrivateKeyKey: bundle.KeyPEM}
}

// Start keeps the authority current until ctx ends. It runs in every replica.
func (a *Authority) Start(ctx context.Context) error {
	log := logr.FromContextOrDiscard(ctx).WithName("authority")
	ticker := a.clock.NewTicker(authorityCheck)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C():
		}
		if err := a.refresh(ctx); err != nil {
			log.Error(err, "Cannot check the authority; the present one stays in use")
		}
	}
}

// refresh takes over what the Secret holds, where that is new.
func (a *Authority) refresh(ctx context.Context) error {
	bundle, err := a.read(ctx)
	if err != nil || string(bundle.CertPEM) == a.certs {
		return err
	}
	if err := a.Update(bundle); err != nil {
		return fmt.Errorf("authority in Secret %s: %w", a.secret, err)
	}
	a.certs = string(bundle.CertPEM)
	a.onRenewal()
	return nil
}

// NeedLeaderElection is false: every replica serves agents.
func (a *Authority) NeedLeaderElection() bool { return false }

const serviceAccountUser = "system:serviceaccount:"

// podNameClaim is where a TokenReview tells the pod that a token is bound to.
const podNameClaim = "authentication.kubernetes.io/pod-name"

// VerifyToken returns a check of agents' tokens: the API server must know the
// token for one of a pod of the gateway that the agent claims to belong to.
func VerifyToken(c client.Client, plane *dataplane.Dataplane) func(context.Context, string, identity.Gateway) error {
	return func(ctx context.Context, token string, claimed identity.Gateway) error {
		review := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{
			Token: token, Audiences: []string{workload.TokenAudience},
		}}
		if err := c.Create(ctx, review); err != nil {
			return fmt.Errorf("review a token: %w", err)
		}
		status := review.Status
		if !status.Authenticated || !slices.Contains(status.Audiences, workload.TokenAudience) {
			return fmt.Errorf("%w: the API server does not know the token for audience %s", identity.ErrUnauthenticated, workload.TokenAudience)
		}
		if pods := status.User.Extra[podNameClaim]; len(pods) != 1 || pods[0] != claimed.Pod {
			return fmt.Errorf("%w: the token is not bound to pod %s/%s", identity.ErrUnauthenticated, claimed.Namespace, claimed.Pod)
		}
		account := strings.TrimPrefix(status.User.Username, serviceAccountUser)
		for _, gw := range plane.Result().Gateways {
			if gw.Namespace == claimed.Namespace && gw.Name == claimed.Name &&
				account == gw.Namespace+":"+workload.Name(gw.Name, gw.Class) {
				return nil
			}
		}
		return fmt.Errorf("%w: ServiceAccount %s is not that of Gateway %s/%s",
			identity.ErrUnauthenticated, account, claimed.Namespace, claimed.Name)
	}
}
