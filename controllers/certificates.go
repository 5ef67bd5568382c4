package controllers

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"meshroute.io/meshroute/internal/model"
)

// Certificates reads the Secrets that Gateways refer to, and no others. Each is
// listed and watched by its name alone, as kubelets do it: nothing else of the
// cluster's Secrets is ever in this process, and permissions may name single
// Secrets. Of a Secret only what gateways serve is kept. It is a source of the
// dataplane's controller, which asks for all of them with each build.
type Certificates struct {
	client kubernetes.Interface

	mu      sync.Mutex
	ctx     context.Context //nolint:containedctx // of the watches, which begin with later calls
	queue   workqueue.TypedRateLimitingInterface[dataplaneRequest]
	watched map[model.Key]*watchedSecret
}

// NewCertificates returns Certificates that read by client.
func NewCertificates(client kubernetes.Interface) *Certificates {
	return &Certificates{client: client, watched: map[model.Key]*watchedSecret{}}
}

// Start has the controller build anew when a Secret has changed.
func (c *Certificates) Start(ctx context.Context, queue workqueue.TypedRateLimitingInterface[dataplaneRequest]) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ctx, c.queue = ctx, queue
	return nil
}

// Read returns what the wanted Secrets hold, as far as they exist, and whether
// all of them were looked at. It watches these from now on, and no others.
func (c *Certificates) Read(wanted []model.Key) (certificates map[model.Key]*model.Certificate, complete bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	needed := make(map[model.Key]bool, len(wanted))
	for _, key := range wanted {
		needed[key] = true
	}
	for key, known := range c.watched {
		if !needed[key] {
			known.stop()
			delete(c.watched, key)
		}
	}
	certificates, complete = make(map[model.Key]*model.Certificate, len(wanted)), true
	for _, key := range wanted {
		known := c.watched[key]
		if known == nil {
			known = &watchedSecret{owner: c, key: key}
			c.watched[key] = known
			var ctx context.Context
			ctx, known.stop = context.WithCancel(c.ctx)
			go known.watch(ctx)
		}
		switch {
		case known.failure != "":
			certificates[key] = model.UnreadableCertificate(key, known.certificate, known.failure)
		case !known.looked:
			complete = false
			certificates[key] = model.UnreadableCertificate(key, nil, "the API server has not answered yet")
		case known.certificate != nil:
			certificates[key] = known.certificate
		}
	}
	return certificates, complete
}

// keepGone is how long a Secret that was deleted counts as it was: who replaces
// one by deleting it and making it anew loses no request.
const keepGone = 2 * time.Second

// watchedSecret is where the events of one Secret go (cache.ReflectorStore).
// Its fields are guarded by the owner's mutex.
type watchedSecret struct {
	owner *Certificates
	key   model.Key
	stop  context.CancelFunc

	looked      bool               // it is known whether there is one
	failure     string             // why that cannot be known; empty where it can
	certificate *model.Certificate // nil: there is none
	gone        *time.Timer        // runs while it was deleted a moment ago
}

func (s *watchedSecret) watch(ctx context.Context) {
	secrets := s.owner.client.CoreV1().Secrets(s.key.Namespace)
	byName := fields.OneTermEqualSelector(metav1.ObjectNameField, s.key.Name).String()
	cache.NewReflectorWithOptions(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			options.FieldSelector = byName
			list, err := secrets.List(ctx, options)
			s.answered(err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.FieldSelector = byName
			events, err := secrets.Watch(ctx, options)
			s.answered(err)
			return events, err
		},
	}, &corev1.Secret{}, s, cache.ReflectorOptions{Name: "secret " + s.key.String()}).RunWithContext(ctx)
}

// change changes what is known, and has the gateways built anew.
func (s *watchedSecret) change(change func()) {
	s.owner.mu.Lock()
	defer s.owner.mu.Unlock()
	if s.owner.watched[s.key] != s {
		return // no longer wanted
	}
	change()
	s.owner.queue.Add(dataplaneRequest{})
}

// answered notes whether the API server lets it be read. What is only
// unreachable for a while stays as it was.
func (s *watchedSecret) answered(err error) {
	failure := ""
	if apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) {
		failure = "the operator may not list and watch it: permit it to (see the role meshroute-manager-certificates)"
	} else if err != nil {
		return
	}
	s.owner.mu.Lock()
	same := s.failure == failure
	s.owner.mu.Unlock()
	if !same {
		s.change(func() { s.failure = failure })
	}
}

func (s *watchedSecret) set(secret *corev1.Secret) {
	s.change(func() {
		s.looked = true
		if s.gone != nil {
			s.gone.Stop()
			s.gone = nil
		}
		s.certificate = model.ReadCertificate(secret, s.certificate)
	})
}

// Add takes a new Secret.
func (s *watchedSecret) Add(object any) error {
	secret, ok := object.(*corev1.Secret)
	if !ok {
		return fmt.Errorf("a watch of Secrets brought %T", object)
	}
	s.set(secret)
	return nil
}

// Update takes a changed Secret.
func (s *watchedSecret) Update(object any) error { return s.Add(object) }

// Delete takes note that there is none.
func (s *watchedSecret) Delete(any) error {
	s.change(func() {
		s.looked = true
		if s.certificate == nil || s.gone != nil {
			return
		}
		s.gone = time.AfterFunc(keepGone, func() {
			s.change(func() {
				if s.gone != nil {
					s.gone, s.certificate = nil, nil
				}
			})
		})
	})
	return nil
}

// Replace takes what a list brought: one Secret or none.
func (s *watchedSecret) Replace(objects []any, _ string) error {
	for _, object := range objects {
		return s.Add(object)
	}
	return s.Delete(nil)
}

// Resync has nothing to do.
func (s *watchedSecret) Resync() error { return nil }

var _ cache.ReflectorStore = (*watchedSecret)(nil)
