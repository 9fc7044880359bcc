package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/fleetgate/fleetgate/cluster/member"
)

// api is one API server, reached over one HTTP client.
type api struct {
	client   *http.Client
	typed    map[schema.GroupVersion]*rest.RESTClient
	metadata metadata.Interface
	discover *discovery.DiscoveryClient
}

// options encodes the options of lists and watches for every group alike.
var options = func() runtime.ParameterCodec {
	s := runtime.NewScheme()
	metav1.AddToGroupVersion(s, schema.GroupVersion{Version: "v1"})
	return runtime.NewParameterCodec(s)
}()

func newAPI(c *rest.Config) (*api, error) {
	client, err := rest.HTTPClientFor(c)
	if err != nil {
		return nil, err
	}
	client.CheckRedirect = func(*http.Request, []*http.Request) error {
		return errors.New("the API server redirects; give its own address")
	}
	a := &api{client: client, typed: map[schema.GroupVersion]*rest.RESTClient{}}
	if a.metadata, err = metadata.NewForConfigAndClient(c, client); err != nil {
		return nil, err
	}
	if a.discover, err = discovery.NewDiscoveryClientForConfigAndClient(c, client); err != nil {
		return nil, err
	}
	for _, k := range kinds {
		for _, v := range k.versions {
			gv := schema.GroupVersion{Group: k.group, Version: v}
			if a.typed[gv] != nil {
				continue
			}
			if a.typed[gv], err = rest.RESTClientForConfigAndClient(configFor(c, gv), client); err != nil {
				return nil, err
			}
		}
	}
	return a, nil
}

func configFor(c *rest.Config, gv schema.GroupVersion) *rest.Config {
	out := rest.CopyConfig(c)
	out.GroupVersion, out.APIPath = &gv, "/apis"
	out.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	switch gv.Group {
	case "":
		out.APIPath = "/api"
		fallthrough
	case "discovery.k8s.io":
		out.ContentType = runtime.ContentTypeProtobuf
		out.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	}
	return out
}

// listWatch lists and watches a kind, or one object of it where name is given; told hears how each request went.
func (a *api) listWatch(k *kind, version, namespace, name string, told func(error)) *cache.ListWatch {
	narrow := func(o *metav1.ListOptions) {
		o.LabelSelector = k.selector
		if name != "" {
			o.FieldSelector = "metadata.name=" + name
		}
	}
	if k.metadata {
		return a.listWatchMetadata(k, version, narrow, told)
	}
	client := a.typed[schema.GroupVersion{Group: k.group, Version: version}]
	get := func(o *metav1.ListOptions) *rest.Request {
		return client.Get().NamespaceIfScoped(namespace, namespace != "").Resource(k.resource).
			SpecificallyVersionedParams(o, options, schema.GroupVersion{Version: "v1"})
	}
	return listWatch(narrow, told,
		func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			list := k.list()
			return list, get(&o).Do(ctx).Into(list)
		},
		func(ctx context.Context, o metav1.ListOptions) (watcher, error) { return get(&o).Watch(ctx) })
}

func (a *api) listWatchMetadata(k *kind, version string, narrow func(*metav1.ListOptions), told func(error)) *cache.ListWatch {
	client := a.metadata.Resource(schema.GroupVersionResource{Group: k.group, Version: version, Resource: k.resource})
	return listWatch(narrow, told,
		func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return client.List(ctx, o) },
		func(ctx context.Context, o metav1.ListOptions) (watcher, error) { return client.Watch(ctx, o) })
}

// identity is what tells a cluster from every other: the UID of its kube-system namespace. revision is how far it has come.
func identity(ctx context.Context, client metadata.Interface) (id types.UID, revision string, err error) {
	ctx, cancel := context.WithTimeout(ctx, request)
	defer cancel()
	list, err := client.Resource(namespaces).List(ctx, onlyNamespaceSystem)
	if err == nil && len(list.Items) == 0 {
		err = errors.New("there is none")
	}
	if err != nil {
		return "", "", fmt.Errorf("reading namespace %s: %w", metav1.NamespaceSystem, err)
	}
	return list.Items[0].UID, list.ResourceVersion, nil
}

// onlyNamespaceSystem lists one namespace: unlike an object, a list says how far the cluster has come.
var onlyNamespaceSystem = metav1.ListOptions{FieldSelector: "metadata.name=" + metav1.NamespaceSystem}

// older tells whether a cluster is not as far any more as it was said to be before.
func older(revision, before string) bool {
	order, err := resourceversion.CompareResourceVersion(revision, before)
	return err == nil && order < 0
}

// defined tells whether the CRD of a kind is there and stays. Where it may not be read, the answer is yes.
func (a *api) defined(ctx context.Context, k *kind) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, request)
	defer cancel()
	crd, err := a.metadata.Resource(schema.GroupVersionResource{Group: crdGroup, Version: "v1", Resource: "customresourcedefinitions"}).Get(ctx, k.definition(), metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return false, nil
	case apierrors.IsForbidden(err):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("reading CRD %s: %w", k.definition(), err)
	}
	return crd.DeletionTimestamp == nil, nil
}

// served finds the best version of every custom or optional kind that the server serves; "" where it serves none. Kinds about which it could not be asked are left out.
func (a *api) served(ctx context.Context) (map[*kind]string, error) {
	resources := map[schema.GroupVersion]*metav1.APIResourceList{}
	failed := map[schema.GroupVersion]bool{}
	var errs []error
	for gv := range a.typed {
		if !slices.ContainsFunc(discovered, func(k *kind) bool { return k.group == gv.Group }) {
			continue
		}
		list, err := a.resources(ctx, gv)
		if err != nil {
			failed[gv] = true
			errs = append(errs, err)
		}
		resources[gv] = list
	}
	out := map[*kind]string{}
	for _, k := range discovered {
		choose(k, resources, failed, out)
	}
	return out, errors.Join(errs...)
}

func (a *api) resources(ctx context.Context, gv schema.GroupVersion) (*metav1.APIResourceList, error) {
	ctx, cancel := context.WithTimeout(ctx, request)
	defer cancel()
	list, err := a.discover.ServerResourcesForGroupVersionWithContext(ctx, gv.String())
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("asking which resources of %s are served: %w", gv, err)
	}
	return list, nil
}

// choose picks the best version of a kind; none is picked where a better one could not be asked for.
func choose(k *kind, resources map[schema.GroupVersion]*metav1.APIResourceList, failed map[schema.GroupVersion]bool, out map[*kind]string) {
	for _, v := range k.versions {
		gv := schema.GroupVersion{Group: k.group, Version: v}
		if failed[gv] {
			return
		}
		list := resources[gv]
		if list != nil && slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Name == k.resource }) {
			out[k] = v
			return
		}
	}
	out[k] = ""
}

// object is an object as the server has it, unknown fields included.
type object struct {
	Metadata metav1.ObjectMeta `json:"metadata"`
	Status   json.RawMessage   `json:"status"`
	raw      []byte
}

func (a *api) at(r *rest.Request, k *kind, namespace, name string) *rest.Request {
	return r.NamespaceIfScoped(namespace, k.namespaced).Resource(k.resource).Name(name)
}

func parse(answer rest.Result) (object, error) {
	var o object
	raw, err := answer.Raw()
	if refused := answer.Error(); refused != nil { // says more: what the API server found wrong
		err = refused
	}
	if err != nil {
		return o, err
	}
	if err := json.Unmarshal(raw, &o); err != nil {
		return o, fmt.Errorf("the API server's answer is no object: %w", err)
	}
	o.raw = raw
	return o, nil
}

func (a *api) get(ctx context.Context, k *kind, version, namespace, name string) (object, error) {
	client := a.typed[schema.GroupVersion{Group: k.group, Version: version}]
	return parse(a.at(client.Get(), k, namespace, name).SetHeader("Accept", runtime.ContentTypeJSON).Do(ctx))
}

// read gives an object as lists and watches give it; nil where there is none.
func (a *api) read(ctx context.Context, k *kind, version, namespace, name string) (member.Object, error) {
	o := k.object()
	err := a.at(a.typed[schema.GroupVersion{Group: k.group, Version: version}].Get(), k, namespace, name).Do(ctx).Into(o)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s %s/%s: %w", k.name, namespace, name, err)
	}
	shaped, _ := k.shape(o)
	return shaped, nil
}

// putStatus replaces the status of an object of exactly this UID and resourceVersion.
func (a *api) putStatus(ctx context.Context, k *kind, version string, of metav1.ObjectMeta, status []byte) (object, error) {
	body, err := json.Marshal(map[string]any{
		"apiVersion": k.gvk(version).GroupVersion().String(), "kind": k.name, "status": json.RawMessage(status),
		"metadata": map[string]any{"name": of.Name, "namespace": of.Namespace, "uid": of.UID, "resourceVersion": of.ResourceVersion},
	})
	if err != nil {
		return object{}, fmt.Errorf("encoding the status: %w", err)
	}
	client := a.typed[schema.GroupVersion{Group: k.group, Version: version}]
	r := a.at(client.Put(), k, of.Namespace, of.Name).SubResource("status")
	return parse(r.SetHeader("Content-Type", runtime.ContentTypeJSON).SetHeader("Accept", runtime.ContentTypeJSON).Body(body).Do(ctx))
}

// patch merges a document into an object.
func (a *api) patch(ctx context.Context, k *kind, version, namespace, name string, document any) error {
	body, err := json.Marshal(document)
	if err != nil {
		return fmt.Errorf("encoding the patch: %w", err)
	}
	client := a.typed[schema.GroupVersion{Group: k.group, Version: version}]
	return a.at(client.Patch(types.MergePatchType), k, namespace, name).Body(body).Do(ctx).Error()
}
