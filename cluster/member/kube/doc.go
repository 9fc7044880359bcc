// Package kube is a member cluster that is a Kubernetes API server: objects as a stream of events, status written back.
//
// Unknown is not absent (D10). The accident that this package prevents is an API server that, for a moment, shows less than there is, and fleets
// that lose their routes by it. So what a watch says is believed at once, except where it says that something is gone: a CRD that is being
// removed takes its objects with it, and they are kept; a relist that lacks many objects at once is held; another cluster behind
// the same address is not listened to; 403, time-outs and a CRD that is not there change nothing that was delivered before.
//
// It uses client-go's Reflector (watch-list, relist, backoff), but no informer: the shard controllers hold the objects, and what is needed
// to tell a relist from a change stands in one map (kept). It uses no generated clientset either: the Gateway API's versions differ
// in nothing but their names, so a scheme that decodes v1beta1 into the v1 type is all the conversion there is, and a cluster with
// older CRDs takes the same path as one with the newest.
//
// Secrets and ConfigMaps are read by name, one watch each, and only those that something asked for (Want).
package kube
