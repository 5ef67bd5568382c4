package controllers

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	ktesting "k8s.io/client-go/testing"
	"k8s.io/client-go/util/workqueue"

	"meshroute.io/meshroute/internal/certtest"
	"meshroute.io/meshroute/internal/model"
)

// secretsAPI is an API server that has Secrets and tells of each to those who
// ask for it by name. Who asks for more fails the test.
type secretsAPI struct {
	t *testing.T

	mu      sync.Mutex
	version int
	secrets map[model.Key]*corev1.Secret
	watches map[model.Key]*watch.RaceFreeFakeWatcher
	// failure is what it answers instead.
	failure error
}

// newCertificates returns Certificates that read from an API server without any
// Secret, and the queue of the controller that they wake.
func newCertificates(t *testing.T) (*Certificates, *secretsAPI, workqueue.TypedRateLimitingInterface[dataplaneRequest]) {
	t.Helper()
	api := &secretsAPI{t: t, secrets: map[model.Key]*corev1.Secret{}, watches: map[model.Key]*watch.RaceFreeFakeWatcher{}}
	client := &fake.Clientset{}
	client.AddReactor("*", "*", func(action ktesting.Action) (bool, runtime.Object, error) {
		list, is := action.(ktesting.ListActionImpl)
		if !is {
			t.Errorf("it asks for %s %s", action.GetVerb(), action.GetResource().Resource)
			return true, nil, apierrors.NewBadRequest("no")
		}
		made, err := api.list(api.key(action.GetNamespace(), list.ListOptions))
		return true, made, err
	})
	client.AddWatchReactor("*", func(action ktesting.Action) (bool, watch.Interface, error) {
		options := action.(ktesting.WatchActionImpl).ListOptions
		made, err := api.watch(api.key(action.GetNamespace(), options), options)
		return true, made, err
	})
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[dataplaneRequest]())
	certificates := NewCertificates(client)
	if err := certificates.Start(t.Context(), queue); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		certificates.Read(nil)
		queue.ShutDown()
	})
	return certificates, api, queue
}

// newCertificatesWith returns Certificates that have read the Secret cert.
func newCertificatesWith(t *testing.T, pair certtest.Pair) (*Certificates, *secretsAPI, workqueue.TypedRateLimitingInterface[dataplaneRequest]) {
	t.Helper()
	certificates, api, queue := newCertificates(t)
	api.apply("cert", "1", pair)
	told(certificates, secret("cert"))
	woken(queue)
	return certificates, api, queue
}

func (a *secretsAPI) key(namespace string, options metav1.ListOptions) model.Key {
	name, one := strings.CutPrefix(options.FieldSelector, "metadata.name=")
	if namespace == "" || !one {
		a.t.Errorf("it asks for the Secrets of namespace %q, with the selector %q", namespace, options.FieldSelector)
	}
	return model.Key{Namespace: namespace, Name: name}
}

func (a *secretsAPI) list(key model.Key) (*corev1.SecretList, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	list := &corev1.SecretList{ResourceVersion: strconv.Itoa(a.version)}
	if secret := a.secrets[key]; secret != nil {
		list.Items = append(list.Items, *secret)
	}
	return list, a.failure
}

func (a *secretsAPI) watch(key model.Key, options metav1.ListOptions) (watch.Interface, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.failure != nil {
		return nil, a.failure
	}
	made := watch.NewRaceFreeFake()
	a.watches[key] = made
	if options.SendInitialEvents != nil && *options.SendInitialEvents {
		if secret := a.secrets[key]; secret != nil {
			made.Add(secret.DeepCopy())
		}
		made.Action(watch.Bookmark, &corev1.Secret{
			ResourceVersion: strconv.Itoa(a.version), Annotations: map[string]string{metav1.InitialEventsAnnotationKey: "true"},
		})
	}
	return made, nil
}

// apply makes a Secret, or changes it.
func (a *secretsAPI) apply(name, uid string, pair certtest.Pair) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.version++
	key := model.Key{Namespace: "shop", Name: name}
	secret := &corev1.Secret{
		Namespace: key.Namespace, Name: name, UID: types.UID(uid), ResourceVersion: strconv.Itoa(a.version),
		Type: corev1.SecretTypeTLS, Data: map[string][]byte{"tls.crt": pair.Certificate, "tls.key": pair.Key},
	}
	_, known := a.secrets[key]
	a.secrets[key] = secret
	if to := a.watches[key]; to != nil && !known {
		to.Add(secret.DeepCopy())
	} else if to != nil {
		to.Modify(secret.DeepCopy())
	}
}

func (a *secretsAPI) delete(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.version++
	key := model.Key{Namespace: "shop", Name: name}
	gone := a.secrets[key].DeepCopy()
	gone.ResourceVersion = strconv.Itoa(a.version)
	delete(a.secrets, key)
	a.watches[key].Delete(gone)
}

// fail has it answer everything with an error, nil for nothing, and ends what it
// has begun.
func (a *secretsAPI) fail(failure error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failure = failure
	for _, open := range a.watches {
		open.Stop()
	}
}

// watched are the Secrets that somebody watches, sorted.
func (a *secretsAPI) watched() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var names []string
	for _, key := range slices.SortedFunc(maps.Keys(a.watches), model.CompareKeys) {
		if !a.watches[key].IsStopped() {
			names = append(names, key.String())
		}
	}
	return strings.Join(names, " ")
}

func secret(name string) model.Key { return model.Key{Namespace: "shop", Name: name} }

// told are what Certificates say of Secrets: the names that each is for, and what
// is wrong.
func told(certificates *Certificates, wanted ...model.Key) string {
	read, complete := certificates.Read(wanted)
	var lines []string
	for _, key := range wanted {
		line := key.Name + ": none"
		if certificate := read[key]; certificate != nil {
			problem := strings.TrimPrefix(certificate.Problem, "Secret "+key.String())
			line = strings.TrimSpace(key.Name + ": " + strings.TrimSpace(strings.Join(certificate.Names, ",")+problem))
		}
		lines = append(lines, line)
	}
	if !complete {
		lines = append(lines, "incomplete")
	}
	return strings.Join(lines, "; ")
}

// woken tells whether the controller was, and has it sleep again.
func woken(queue workqueue.TypedRateLimitingInterface[dataplaneRequest]) bool {
	synctest.Wait()
	if queue.Len() == 0 {
		return false
	}
	request, _ := queue.Get()
	queue.Done(request)
	return true
}

func TestOnlySecretsOfGatewaysAreWatchedEachByItsName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		authority := certtest.NewAuthority(t)
		certificates, api, queue := newCertificates(t)
		api.apply("one", "1", authority.Issue(t, "one.example.com"))
		api.apply("two", "2", authority.Issue(t, "two.example.com"))
		api.apply("unwanted", "3", authority.Issue(t, "unwanted.example.com"))

		// Nothing may be built before the API server has answered.
		expect(t, "one: cannot be read: the API server has not answered yet; three: cannot be read: the API server has not answered yet; incomplete",
			told(certificates, secret("one"), secret("three")))
		expect(t, true, woken(queue))
		expect(t, "one: one.example.com; three: none", told(certificates, secret("one"), secret("three")))
		expect(t, "shop/one shop/three", api.watched())

		told(certificates, secret("one"), secret("two"))
		expect(t, true, woken(queue))
		expect(t, "one: one.example.com; two: two.example.com", told(certificates, secret("one"), secret("two")))
		expect(t, "shop/one shop/two", api.watched())

		// What is not wanted wakes nobody.
		api.apply("three", "4", authority.Issue(t, "three.example.com"))
		expect(t, false, woken(queue))
		told(certificates)
		synctest.Wait()
		expect(t, "", api.watched())
	})
}

func TestASecretIsFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		authority := certtest.NewAuthority(t)
		certificates, api, queue := newCertificates(t)
		told(certificates, secret("cert"))
		woken(queue)
		expect(t, "cert: none", told(certificates, secret("cert")))

		api.apply("cert", "1", authority.Issue(t, "first.example.com"))
		expect(t, true, woken(queue))
		expect(t, "cert: first.example.com", told(certificates, secret("cert")))
		api.apply("cert", "1", authority.Issue(t, "second.example.com"))
		expect(t, true, woken(queue))
		expect(t, "cert: second.example.com", told(certificates, secret("cert")))

		// What cannot be used leaves the last good one in use.
		api.apply("cert", "1", certtest.Pair{Certificate: []byte("none"), Key: []byte("none")})
		expect(t, true, woken(queue))
		if got := told(certificates, secret("cert")); !strings.HasPrefix(got, "cert: second.example.com has a malformed certificate") {
			t.Error(got)
		}
		read, _ := certificates.Read([]model.Key{secret("cert")})
		if read[secret("cert")].PrivateKey == nil {
			t.Error("the last good key is gone")
		}
	})
}

// Who replaces a Secret by deleting it and making it anew loses no request.
func TestADeletedSecretCountsForAMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		authority := certtest.NewAuthority(t)
		certificates, api, queue := newCertificatesWith(t, authority.Issue(t, "first.example.com"))

		api.delete("cert")
		woken(queue)
		time.Sleep(keepGone - 1)
		woken(queue)
		expect(t, "cert: first.example.com", told(certificates, secret("cert")))
		api.apply("cert", "2", authority.Issue(t, "second.example.com"))
		expect(t, true, woken(queue))
		time.Sleep(2 * keepGone)
		woken(queue)
		expect(t, "cert: second.example.com", told(certificates, secret("cert")))

		// The moment begins anew with each time that it is deleted.
		api.delete("cert")
		time.Sleep(keepGone / 2)
		api.apply("cert", "3", authority.Issue(t, "third.example.com"))
		synctest.Wait()
		api.delete("cert")
		time.Sleep(keepGone - 1)
		woken(queue)
		expect(t, "cert: third.example.com", told(certificates, secret("cert")))
		time.Sleep(time.Nanosecond)
		expect(t, true, woken(queue))
		expect(t, "cert: none", told(certificates, secret("cert")))
	})
}

// An API server that is away changes nothing; one that forbids is told of, and
// what is known stays.
func TestASecretThatCannotBeRead(t *testing.T) {
	// One of the handlers waits by the time at which the last error was seen, which
	// is not that of this test.
	handlers := utilruntime.ErrorHandlers
	utilruntime.ErrorHandlers = nil                         //nolint:reassign // nothing else has reflectors do without it
	defer func() { utilruntime.ErrorHandlers = handlers }() //nolint:reassign // as it was
	synctest.Test(t, func(t *testing.T) {
		authority := certtest.NewAuthority(t)
		certificates, api, queue := newCertificatesWith(t, authority.Issue(t, "first.example.com"))

		api.fail(apierrors.NewServiceUnavailable("away"))
		time.Sleep(time.Minute)
		woken(queue)
		expect(t, "cert: first.example.com", told(certificates, secret("cert")))
		expect(t, "cert: first.example.com; new: cannot be read: the API server has not answered yet; incomplete",
			told(certificates, secret("cert"), secret("new")))

		api.fail(apierrors.NewForbidden(corev1.Resource("secrets"), "", nil))
		time.Sleep(time.Minute)
		expect(t, true, woken(queue))
		const forbidden = "cannot be read: the operator may not list and watch it: permit it to (see the role meshroute-manager-certificates)"
		expect(t, "cert: first.example.com "+forbidden+"; new: "+forbidden, told(certificates, secret("cert"), secret("new")))
		time.Sleep(time.Minute)
		expect(t, false, woken(queue)) // it is told once

		api.apply("cert", "1", authority.Issue(t, "second.example.com"))
		api.fail(nil)
		time.Sleep(time.Minute)
		expect(t, true, woken(queue))
		expect(t, "cert: second.example.com; new: none", told(certificates, secret("cert"), secret("new")))
	})
}

func expect[T comparable](t *testing.T, want, got T) {
	t.Helper()
	if want != got {
		t.Errorf("got:\n%v\nwant:\n%v", got, want)
	}
}
